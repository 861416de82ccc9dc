//! The field names that the balancer uses, recognised by one table look-up.
//!
//! The slot of a name is computed from its length and three of its letters, with a multiplier that is searched at
//! compile time so that no two names share a slot. One comparison then decides.

use super::ascii;

macro_rules! names {
    ($($variant:ident = $text:literal),* $(,)?) => {
        /// A field name that the balancer uses, or [`Name::Other`].
        #[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
        #[repr(u8)]
        pub enum Name {
            /// Any other name; its text is in the buffer.
            #[default]
            Other,
            $(#[doc = $text] $variant),*
        }

        pub(super) const ALL: &[Name] = &[$(Name::$variant),*];

        /// By discriminant.
        const TEXTS: &[&str] = &["", $($text),*];
    };
}

names! {
    Age = "Age",
    Authorization = "Authorization",
    CacheControl = "Cache-Control",
    CdnLoop = "CDN-Loop",
    ClientCert = "Client-Cert",
    ClientCertChain = "Client-Cert-Chain",
    Connection = "Connection",
    ContentEncoding = "Content-Encoding",
    ContentLength = "Content-Length",
    ContentRange = "Content-Range",
    ContentType = "Content-Type",
    Cookie = "Cookie",
    Date = "Date",
    Expect = "Expect",
    Expires = "Expires",
    Forwarded = "Forwarded",
    Host = "Host",
    Http2Settings = "HTTP2-Settings",
    IfMatch = "If-Match",
    IfModifiedSince = "If-Modified-Since",
    IfNoneMatch = "If-None-Match",
    IfRange = "If-Range",
    IfUnmodifiedSince = "If-Unmodified-Since",
    KeepAlive = "Keep-Alive",
    Location = "Location",
    MaxForwards = "Max-Forwards",
    Pragma = "Pragma",
    ProxyAuthenticate = "Proxy-Authenticate",
    ProxyAuthorization = "Proxy-Authorization",
    ProxyConnection = "Proxy-Connection",
    Range = "Range",
    Referer = "Referer",
    Refresh = "Refresh",
    RetryAfter = "Retry-After",
    SecWebSocketAccept = "Sec-WebSocket-Accept",
    SecWebSocketKey = "Sec-WebSocket-Key",
    SecWebSocketVersion = "Sec-WebSocket-Version",
    Server = "Server",
    SetCookie = "Set-Cookie",
    Te = "TE",
    Trailer = "Trailer",
    TransferEncoding = "Transfer-Encoding",
    Upgrade = "Upgrade",
    UserAgent = "User-Agent",
    Vary = "Vary",
    Via = "Via",
    Warning = "Warning",
    WwwAuthenticate = "WWW-Authenticate",
    XForwardedClientCert = "X-Forwarded-Client-Cert",
    XForwardedFor = "X-Forwarded-For",
    XForwardedHost = "X-Forwarded-Host",
    XForwardedPort = "X-Forwarded-Port",
    XForwardedPrefix = "X-Forwarded-Prefix",
    XForwardedProto = "X-Forwarded-Proto",
    XForwardedServer = "X-Forwarded-Server",
    XPoweredBy = "X-Powered-By",
    XRealIp = "X-Real-IP",
    XRequestId = "X-Request-Id",
}

impl Name {
    /// The name as usually written; empty for [`Name::Other`].
    #[inline]
    pub const fn text(self) -> &'static str {
        TEXTS[self as usize]
    }

    /// The known name that equals the token `text`, ignoring case.
    #[inline]
    pub fn of(text: &[u8]) -> Name {
        let (Some(&first), Some(&last)) = (text.first(), text.last()) else {
            return Name::Other;
        };
        let middle = text[text.len().saturating_sub(4)];
        let name = TABLE[slot(MULTIPLIER, text.len(), first, middle, last)];
        if ascii::same_token(name.text().as_bytes(), text) { name } else { Name::Other }
    }
}

const SLOT_BITS: u32 = 9;
static TABLE: [Name; 1 << SLOT_BITS] = table(MULTIPLIER);
const MULTIPLIER: u32 = multiplier();

const fn slot(multiplier: u32, len: usize, first: u8, middle: u8, last: u8) -> usize {
    let key = [len as u8, first | 0x20, middle | 0x20, last | 0x20];
    (u32::from_le_bytes(key).wrapping_mul(multiplier) >> (32 - SLOT_BITS)) as usize
}

const fn slot_of(multiplier: u32, name: Name) -> usize {
    let text = name.text().as_bytes();
    let len = text.len();
    slot(multiplier, len, text[0], text[len.saturating_sub(4)], text[len - 1])
}

const fn table(multiplier: u32) -> [Name; 1 << SLOT_BITS] {
    let mut table = [Name::Other; 1 << SLOT_BITS];
    let mut at = 0;
    while at < ALL.len() {
        table[slot_of(multiplier, ALL[at])] = ALL[at];
        at += 1;
    }
    table
}

/// The first multiplier that gives every name its own slot. Compilation fails if there is none.
const fn multiplier() -> u32 {
    let mut candidate: u32 = 0x9e37_79b1;
    loop {
        let table = table(candidate);
        let mut at = 0;
        while at < ALL.len() && table[slot_of(candidate, ALL[at])] as u8 == ALL[at] as u8 {
            at += 1;
        }
        if at == ALL.len() {
            return candidate;
        }
        candidate = candidate.wrapping_mul(0x0019_660d).wrapping_add(0x3c6e_f35f) | 1;
    }
}

/// A set of known names.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct NameSet(u64);

const _: () = assert!(ALL.len() < 64, "a name set has 64 places");

impl NameSet {
    /// The empty set.
    pub const EMPTY: NameSet = NameSet(0);

    /// The set of `names`. Never includes [`Name::Other`], which stands for no name.
    pub const fn of(names: &[Name]) -> NameSet {
        let mut set = NameSet::EMPTY;
        let mut at = 0;
        while at < names.len() {
            set = set.with(names[at]);
            at += 1;
        }
        set
    }

    /// This set with `name` added.
    #[must_use]
    pub const fn with(self, name: Name) -> NameSet {
        NameSet((self.0 | 1 << name as u8) & !1)
    }

    /// This set without `name`.
    #[must_use]
    pub const fn without(self, name: Name) -> NameSet {
        NameSet(self.0 & !(1 << name as u8))
    }

    /// Whether `name` is in the set.
    #[inline]
    pub const fn has(self, name: Name) -> bool {
        self.0 & (1 << name as u8) != 0
    }

    /// The union of this set and `others`.
    #[must_use]
    pub const fn union(self, others: NameSet) -> NameSet {
        NameSet(self.0 | others.0)
    }

    /// The names in the set.
    pub fn iter(self) -> impl Iterator<Item = Name> {
        ALL.iter().copied().filter(move |name| self.has(*name))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_known_name_is_found_in_any_case() {
        for &name in ALL {
            assert_eq!(Name::of(name.text().as_bytes()), name);
            assert_eq!(Name::of(name.text().to_ascii_lowercase().as_bytes()), name);
            assert_eq!(Name::of(name.text().to_ascii_uppercase().as_bytes()), name);
        }
    }

    #[test]
    fn similar_names_are_other() {
        for text in ["", "a", "Hos", "Hosts", "Host_", "Content-Lengt", "Content_Length", "X-Forwarded-Fox", "Accept"] {
            assert_eq!(Name::of(text.as_bytes()), Name::Other, "{text}");
        }
    }

    #[test]
    fn other_is_in_no_set() {
        let set = NameSet::of(&[Name::Other, Name::Host]);
        assert!(set.has(Name::Host) && !set.has(Name::Other) && !set.has(Name::Te));
        assert_eq!(set.without(Name::Host), NameSet::EMPTY);
        assert!(set.union(NameSet::of(&[Name::Age])).iter().eq([Name::Age, Name::Host]));
    }
}
