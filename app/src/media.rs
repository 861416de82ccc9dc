//! Pictures: checked before they are kept, named by their content, stored where every instance finds them.
//!
//! An upload is spooled to an unnamed file while it is hashed and counted, and passed on in parts: of 256 KiB to a
//! folder, of 5 MiB to a bucket, which takes no smaller ones. On the way out it is streamed. Only checking decodes it
//! whole, one at a time, and one of each member's at most waits for its turn beside those of others.

#[cfg(feature = "network")]
mod bucket;
#[cfg(any(test, feature = "contract"))]
pub mod contract;

use std::collections::HashMap;
use std::fmt;
use std::fs::File;
use std::io::{self, BufRead};
use std::ops::Range;
use std::path::Path;
use std::str::FromStr;
use std::sync::{Arc, Mutex, PoisonError, Weak};
use std::time::Duration;

use async_trait::async_trait;
use bytes::Bytes;
use futures_util::TryStreamExt;
use futures_util::stream::BoxStream;
use image::{DynamicImage, ImageDecoder, ImageFormat, ImageReader};
use object_store::buffered::BufWriter;
use object_store::local::LocalFileSystem;
use object_store::{Attribute, Attributes, GetOptions, GetRange, ObjectStore, ObjectStoreExt};
use sha2::{Digest, Sha256};
use tokio::io::{AsyncSeekExt, AsyncWriteExt};
use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use tokio::time::{Instant, timeout_at};

#[cfg(feature = "network")]
pub use self::bucket::Bucket;
use crate::data::UserKey;
use crate::error::{Error, StoreError};

/// Keeps pictures for every instance.
///
/// A name stands for one content for ever, so putting it twice is harmless and nothing is ever overwritten with
/// something else. A picture is seen whole or not at all, by every instance, once `put` has returned.
#[async_trait]
pub trait MediaStore: fmt::Debug + Send + Sync + 'static {
    /// Stores all of `content`, read from its start.
    async fn put(&self, name: &MediaName, content: tokio::fs::File) -> Result<(), StoreError>;

    /// The picture, or the part of it in `range`, which must begin within it; `None` if there is no such picture.
    async fn open(&self, name: &MediaName, range: Option<Range<u64>>) -> Result<Option<Media>, StoreError>;

    /// The size in bytes, `None` if there is no such picture.
    async fn size(&self, name: &MediaName) -> Result<Option<u64>, StoreError>;

    /// Whether the store answers.
    async fn ready(&self) -> Result<(), StoreError>;
}

/// A picture that is being sent.
pub struct Media {
    /// Size of the whole picture, in bytes.
    pub size: u64,
    pub content: BoxStream<'static, io::Result<Bytes>>,
}

/// The supported image formats.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Kind {
    Png,
    Jpeg,
    Gif,
    WebP,
}

impl Kind {
    const ALL: [Self; 4] = [Self::Png, Self::Jpeg, Self::Gif, Self::WebP];

    pub fn content_type(self) -> &'static str {
        match self {
            Self::Png => "image/png",
            Self::Jpeg => "image/jpeg",
            Self::Gif => "image/gif",
            Self::WebP => "image/webp",
        }
    }

    fn extension(self) -> &'static str {
        match self {
            Self::Png => "png",
            Self::Jpeg => "jpg",
            Self::Gif => "gif",
            Self::WebP => "webp",
        }
    }

    fn from_format(format: ImageFormat) -> Option<Self> {
        match format {
            ImageFormat::Png => Some(Self::Png),
            ImageFormat::Jpeg => Some(Self::Jpeg),
            ImageFormat::Gif => Some(Self::Gif),
            ImageFormat::WebP => Some(Self::WebP),
            _ => None,
        }
    }
}

/// The name of a picture: the SHA-256 of its content, and its kind.
#[derive(Clone, Copy, PartialEq, Eq, Hash)]
pub struct MediaName {
    digest: [u8; 32],
    kind: Kind,
}

impl MediaName {
    pub fn kind(&self) -> Kind {
        self.kind
    }

    /// Its path in a store, spread over folders so that none becomes huge.
    fn location(&self) -> object_store::path::Path {
        let name = self.to_string();
        object_store::path::Path::from_iter([&name[..2], &name])
    }
}

impl fmt::Display for MediaName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.digest.iter().try_for_each(|byte| write!(f, "{byte:02x}"))?;
        write!(f, ".{}", self.kind.extension())
    }
}

impl fmt::Debug for MediaName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

impl FromStr for MediaName {
    type Err = NotAMediaName;

    fn from_str(text: &str) -> Result<Self, NotAMediaName> {
        let (hex, extension) = text.split_once('.').ok_or(NotAMediaName)?;
        let kind = Kind::ALL.into_iter().find(|kind| kind.extension() == extension).ok_or(NotAMediaName)?;
        let lower = |byte: u8| byte.is_ascii_digit() || (b'a'..=b'f').contains(&byte);
        if hex.len() != 64 || !hex.bytes().all(lower) {
            return Err(NotAMediaName);
        }
        let mut digest = [0; 32];
        for (index, byte) in digest.iter_mut().enumerate() {
            *byte = u8::from_str_radix(&hex[2 * index..2 * index + 2], 16).map_err(|_| NotAMediaName)?;
        }
        Ok(Self { digest, kind })
    }
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("not the name of a picture")]
pub struct NotAMediaName;

/// Limits on a picture.
#[derive(Debug, Clone, Copy)]
pub struct Limits {
    pub bytes: u64,
    pub pixels: u64,
}

/// Why a picture was refused.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Refusal {
    TooManyBytes,
    TooManyPixels,
    /// Not a supported format.
    OtherKind,
    /// The format is recognised, but the picture cannot be decoded.
    Broken,
    /// Not checked: too many others are waiting.
    Busy,
}

impl Refusal {
    pub fn as_str(self) -> &'static str {
        match self {
            Self::TooManyBytes => "too_many_bytes",
            Self::TooManyPixels => "too_many_pixels",
            Self::OtherKind => "other_kind",
            Self::Broken => "broken",
            Self::Busy => "busy",
        }
    }
}

/// Schedules the decoding of pictures. One at a time, because decoding takes memory, and at most one picture per member
/// is in the queue with those of others, however many the member sends.
#[derive(Debug)]
pub struct Checks {
    turn: Arc<Semaphore>,
    of_members: Mutex<HashMap<UserKey, Weak<Semaphore>>>,
    longest_wait: Duration,
}

/// The turn of a picture.
#[derive(Debug)]
struct Turn {
    _of_all: OwnedSemaphorePermit,
    _of_member: OwnedSemaphorePermit,
}

impl Default for Checks {
    fn default() -> Self {
        Self::new(QUEUE_TIMEOUT)
    }
}

impl Checks {
    fn new(longest_wait: Duration) -> Self {
        Self { turn: Arc::new(Semaphore::new(1)), of_members: Mutex::default(), longest_wait }
    }

    /// Waits for a turn; `None` if that would take too long.
    async fn take(&self, member: &UserKey) -> Option<Turn> {
        let deadline = Instant::now() + self.longest_wait;
        let acquire =
            async |turn: Arc<Semaphore>| timeout_at(deadline, Semaphore::acquire_owned(turn)).await.ok()?.ok();
        let of_member = acquire(self.of(member)).await?;
        Some(Turn { _of_all: acquire(Arc::clone(&self.turn)).await?, _of_member: of_member })
    }

    fn of(&self, member: &UserKey) -> Arc<Semaphore> {
        let mut of_members = self.of_members.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(turn) = of_members.get(member).and_then(Weak::upgrade) {
            return turn;
        }
        of_members.retain(|_, turn| turn.strong_count() > 0);
        let turn = Arc::new(Semaphore::new(1));
        of_members.insert(member.clone(), Arc::downgrade(&turn));
        turn
    }
}

/// A picture that is being received.
#[derive(Debug)]
pub struct Spool {
    file: tokio::fs::File,
    hasher: Sha256,
    size: u64,
    limit: u64,
}

impl Spool {
    pub async fn new(limits: Limits) -> Result<Self, Error> {
        let file = tokio::task::spawn_blocking(tempfile::tempfile).await.map_err(Error::internal)?;
        let file = file.map_err(StoreError::unavailable)?;
        Ok(Self { file: tokio::fs::File::from_std(file), hasher: Sha256::new(), size: 0, limit: limits.bytes })
    }

    /// Adds a chunk. Beyond the limit, bytes are counted but not stored.
    pub async fn push(&mut self, chunk: &[u8]) -> Result<(), Error> {
        self.size += chunk.len() as u64;
        if self.size <= self.limit {
            self.hasher.update(chunk);
            self.file.write_all(chunk).await.map_err(StoreError::unavailable)?;
        }
        Ok(())
    }

    /// Checks the picture and stores it for `member`. The outer error is ours, the inner one the picture's.
    pub async fn keep(
        mut self,
        store: &dyn MediaStore,
        checks: &Checks,
        member: &UserKey,
        limits: Limits,
    ) -> Result<Result<StoredPicture, Refusal>, Error> {
        if self.size > self.limit {
            return Ok(Err(Refusal::TooManyBytes));
        }
        self.file.flush().await.map_err(StoreError::unavailable)?;
        let file = self.file.into_std().await;
        let Some(turn) = checks.take(member).await else { return Ok(Err(Refusal::Busy)) };
        let (file, checked) = tokio::task::spawn_blocking(move || -> io::Result<_> {
            // Held by the check itself, which continues if the client disconnects. Not held while the picture is
            // stored.
            let _turn = turn;
            let checked = check(&file, limits)?;
            Ok((file, checked))
        })
        .await
        .map_err(Error::internal)?
        .map_err(StoreError::unavailable)?;
        let (kind, width, height) = match checked {
            Ok(checked) => checked,
            Err(refusal) => return Ok(Err(refusal)),
        };
        let name = MediaName { digest: self.hasher.finalize().into(), kind };
        let mut file = tokio::fs::File::from_std(file);
        file.rewind().await.map_err(StoreError::unavailable)?;
        store.put(&name, file).await?;
        Ok(Ok(StoredPicture { name, width, height }))
    }
}

/// A picture that was checked and stored.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct StoredPicture {
    pub name: MediaName,
    pub width: u32,
    pub height: u32,
}

/// Format and size, determined by decoding: file names and headers are not trusted.
fn check(mut file: &File, limits: Limits) -> io::Result<Result<(Kind, u32, u32), Refusal>> {
    use io::Seek;

    file.rewind()?;
    let mut reader = ImageReader::new(io::BufReader::new(file)).with_guessed_format()?;
    let Some(kind) = reader.format().and_then(Kind::from_format) else {
        return Ok(Err(Refusal::OtherKind));
    };
    // Metadata (a colour profile, texts) can be compressed a thousandfold.
    let mut bounds = image::Limits::no_limits();
    bounds.max_alloc = Some(BESIDE_THE_PICTURE);
    reader.limits(bounds.clone());
    let Ok(mut decoder) = reader.into_decoder() else {
        return Ok(Err(Refusal::Broken));
    };
    let (width, height) = decoder.dimensions();
    let pixels = u64::from(width) * u64::from(height);
    if pixels > limits.pixels {
        return Ok(Err(Refusal::TooManyPixels));
    }
    // Four samples of at most two bytes per pixel, and as much again for the decoder.
    bounds.max_alloc = Some(pixels.saturating_mul(16).max(1 << 20));
    let decoded = bounds
        .reserve(decoder.total_bytes())
        .and_then(|()| decoder.set_limits(bounds))
        .and_then(|()| DynamicImage::from_decoder(decoder));
    if decoded.is_err() {
        return Ok(Err(Refusal::Broken));
    }
    drop(decoded);
    if kind == Kind::Jpeg {
        file.rewind()?;
        if !jpeg_ends(io::BufReader::new(file))? {
            return Ok(Err(Refusal::Broken));
        }
    }
    Ok(Ok((kind, width, height)))
}

/// Whether a JPEG is complete (marker EOI, ITU-T T.81 B.1.1.3). The decoder accepts a truncated one and fills it up.
fn jpeg_ends(mut content: impl BufRead) -> io::Result<bool> {
    let mut next = || -> io::Result<Option<u8>> {
        let byte = content.fill_buf()?.first().copied();
        content.consume(usize::from(byte.is_some()));
        Ok(byte)
    };
    while let Some(byte) = next()? {
        if byte != 0xff {
            continue;
        }
        // Any number of fill bytes may precede the marker.
        let mut marker = next()?;
        while marker == Some(0xff) {
            marker = next()?;
        }
        match marker {
            Some(0xd9) => return Ok(true),
            // A stuffed byte of a scan, a restart, the start of the image, or TEM: none is followed by a length.
            Some(0x00 | 0x01 | 0xd0..=0xd8) => {}
            // A segment with arbitrary content.
            Some(_) => {
                let (Some(high), Some(low)) = (next()?, next()?) else { return Ok(false) };
                for _ in 2..u16::from_be_bytes([high, low]) {
                    if next()?.is_none() {
                        return Ok(false);
                    }
                }
            }
            None => return Ok(false),
        }
    }
    Ok(false)
}

/// Pictures in an object store: a shared folder, or a bucket.
#[derive(Debug, Clone)]
pub struct ObjectMedia {
    store: Arc<dyn ObjectStore>,
    /// Bytes in memory while a picture is uploaded.
    part: usize,
    /// Whether it stores a content type. A folder refuses one; the name contains the format in any case.
    keeps_type: bool,
}

impl ObjectMedia {
    /// Stores pictures in `folder`, and creates it if necessary.
    pub fn in_folder(folder: &Path) -> anyhow::Result<Self> {
        std::fs::create_dir_all(folder)?;
        // As durable as the post that shows it.
        let store = Arc::new(LocalFileSystem::new_with_prefix(folder)?.with_fsync(true));
        Ok(Self { store, part: FOLDER_PART, keeps_type: false })
    }

    /// Stores pictures in `bucket`, accessed with the variables in `environment`.
    #[cfg(feature = "network")]
    pub fn in_bucket(bucket: &Bucket, environment: impl IntoIterator<Item = (String, String)>) -> anyhow::Result<Self> {
        Ok(Self { store: bucket.open(environment)?, part: BUCKET_PART, keeps_type: true })
    }
}

#[async_trait]
impl MediaStore for ObjectMedia {
    async fn put(&self, name: &MediaName, mut content: tokio::fs::File) -> Result<(), StoreError> {
        if self.size(name).await?.is_some() {
            return Ok(());
        }
        let mut writer = BufWriter::with_capacity(Arc::clone(&self.store), name.location(), self.part);
        writer = writer.with_max_concurrency(1);
        if self.keeps_type {
            let content_type = (Attribute::ContentType, name.kind().content_type());
            writer = writer.with_attributes(Attributes::from_iter([content_type]));
        }
        let mut content = tokio::io::BufReader::with_capacity(COPY, &mut content);
        if let Err(error) = tokio::io::copy_buf(&mut content, &mut writer).await {
            // Best effort: the remaining parts have no name yet.
            let _ = writer.abort().await;
            return Err(StoreError::unavailable(error));
        }
        // If this fails, it has cleaned up, and must not be aborted again.
        writer.shutdown().await.map_err(StoreError::unavailable)
    }

    async fn open(&self, name: &MediaName, range: Option<Range<u64>>) -> Result<Option<Media>, StoreError> {
        let options = GetOptions { range: range.map(GetRange::Bounded), ..GetOptions::default() };
        match self.store.get_opts(&name.location(), options).await {
            Ok(found) => Ok(Some(Media {
                size: found.meta.size,
                content: Box::pin(found.into_stream().map_err(io::Error::other)),
            })),
            Err(object_store::Error::NotFound { .. }) => Ok(None),
            Err(error) => Err(StoreError::unavailable(error)),
        }
    }

    async fn size(&self, name: &MediaName) -> Result<Option<u64>, StoreError> {
        match self.store.head(&name.location()).await {
            Ok(meta) => Ok(Some(meta.size)),
            Err(object_store::Error::NotFound { .. }) => Ok(None),
            Err(error) => Err(StoreError::unavailable(error)),
        }
    }

    async fn ready(&self) -> Result<(), StoreError> {
        match self.store.head(&object_store::path::Path::from("ready")).await {
            Ok(_) | Err(object_store::Error::NotFound { .. }) => Ok(()),
            Err(error) => Err(StoreError::unavailable(error)),
        }
    }
}

const FOLDER_PART: usize = 256 * 1024;
/// S3 accepts smaller parts only at the end. Smaller pictures are uploaded in one request.
#[cfg(feature = "network")]
const BUCKET_PART: usize = 5 * 1024 * 1024;
const COPY: usize = 64 * 1024;
/// Limit on the memory for metadata in a picture's file.
const BESIDE_THE_PICTURE: u64 = 8 << 20;
/// How long a picture may wait to be decoded.
const QUEUE_TIMEOUT: Duration = Duration::from_secs(10);

#[cfg(test)]
mod tests {
    use super::*;

    const LIMITS: Limits = Limits { bytes: 100_000, pixels: 10_000 };

    #[tokio::test]
    async fn keeps_the_contract() {
        let folder = tempfile::tempdir().unwrap();
        let one = ObjectMedia::in_folder(folder.path()).unwrap();
        let other = ObjectMedia::in_folder(folder.path()).unwrap();
        contract::run(&one, &other).await;
    }

    async fn receive(content: &[u8]) -> Result<StoredPicture, Refusal> {
        let folder = tempfile::tempdir().unwrap();
        let store = ObjectMedia::in_folder(folder.path()).unwrap();
        let mut spool = Spool::new(LIMITS).await.unwrap();
        for chunk in content.chunks(1_000) {
            spool.push(chunk).await.unwrap();
        }
        spool.keep(&store, &Checks::default(), &member("ann"), LIMITS).await.unwrap()
    }

    fn member(name: &str) -> UserKey {
        name.parse::<crate::data::UserName>().unwrap().key()
    }

    fn picture(width: u32, height: u32, format: ImageFormat) -> Vec<u8> {
        let mut bytes = io::Cursor::new(Vec::new());
        image::RgbImage::new(width, height).write_to(&mut bytes, format).unwrap();
        bytes.into_inner()
    }

    #[tokio::test]
    async fn pictures_of_all_four_kinds_are_kept_with_their_size() {
        for (format, kind) in [
            (ImageFormat::Png, Kind::Png),
            (ImageFormat::Jpeg, Kind::Jpeg),
            (ImageFormat::Gif, Kind::Gif),
            (ImageFormat::WebP, Kind::WebP),
        ] {
            let kept = receive(&picture(40, 30, format)).await.unwrap();
            assert_eq!((kept.name.kind(), kept.width, kept.height), (kind, 40, 30));
        }
    }

    #[tokio::test]
    async fn files_that_are_not_pictures_are_refused_whatever_their_type() {
        assert_eq!(receive(b"<html><script>alert(1)</script>").await, Err(Refusal::OtherKind));
        assert_eq!(receive(b"<svg xmlns='http://www.w3.org/2000/svg'/>").await, Err(Refusal::OtherKind));
        assert_eq!(receive(b"\x89PNG\r\n\x1a\n<script>").await, Err(Refusal::Broken));
        assert_eq!(receive(b"GIF89a").await, Err(Refusal::Broken));
        assert_eq!(receive(b"").await, Err(Refusal::OtherKind));
    }

    #[tokio::test]
    async fn a_picture_cut_short_is_refused() {
        let whole = picture(40, 30, ImageFormat::Png);
        assert_eq!(receive(&whole[..whole.len() / 2]).await, Err(Refusal::Broken));
    }

    #[tokio::test]
    async fn a_jpeg_cut_anywhere_is_refused() {
        let whole = picture(40, 30, ImageFormat::Jpeg);
        let scan = whole.windows(2).position(|marker| marker == [0xff, 0xda]).unwrap();
        for length in (scan..whole.len()).step_by(7).chain([whole.len() - 1]) {
            assert_eq!(receive(&whole[..length]).await, Err(Refusal::Broken), "{length} of {}", whole.len());
        }
        // Bytes after its end are not part of it, and the end of a thumbnail is not its own.
        let longer = [&whole[..], b"trailing"].concat();
        assert!(receive(&longer).await.is_ok());
        let thumbnail = [&whole[..2], &[0xff, 0xe1, 0, 4, 0xff, 0xd9], &whole[2..]].concat();
        assert!(receive(&thumbnail).await.is_ok());
        assert_eq!(receive(&thumbnail[..thumbnail.len() - 2]).await, Err(Refusal::Broken));
    }

    #[tokio::test(start_paused = true)]
    async fn pictures_of_one_member_delay_others_by_one_picture_at_most() {
        let checks = Checks::default();
        let (ann, ben) = (member("ann"), member("ben"));
        let first = checks.take(&ann).await.unwrap();
        let (second, third, others, ()) =
            tokio::join!(checks.take(&ann), checks.take(&ann), checks.take(&ben), async {
                tokio::time::sleep(QUEUE_TIMEOUT / 2).await;
                drop(first);
            });
        assert!(others.is_some() && third.is_none(), "{second:?} {third:?} {others:?}");
        drop((second, others));
        assert!(checks.take(&member("cid")).await.is_some());
        assert!(checks.of_members.lock().unwrap().len() <= 1, "nothing is left of those who have gone");
    }

    #[tokio::test]
    async fn too_many_bytes_or_pixels_are_refused() {
        assert_eq!(receive(&vec![0; 100_001]).await, Err(Refusal::TooManyBytes));
        assert_eq!(receive(&picture(101, 100, ImageFormat::Png)).await, Err(Refusal::TooManyPixels));
        assert!(receive(&picture(100, 100, ImageFormat::Png)).await.is_ok());
    }

    /// Never completes.
    #[derive(Debug)]
    struct Stuck;

    #[async_trait]
    impl MediaStore for Stuck {
        async fn put(&self, _: &MediaName, _: tokio::fs::File) -> Result<(), StoreError> {
            std::future::pending().await
        }

        async fn open(&self, _: &MediaName, _: Option<Range<u64>>) -> Result<Option<Media>, StoreError> {
            Ok(None)
        }

        async fn size(&self, _: &MediaName) -> Result<Option<u64>, StoreError> {
            Ok(None)
        }

        async fn ready(&self) -> Result<(), StoreError> {
            Ok(())
        }
    }

    // The turn belonged to the future: a client that disconnected made room for another picture while its own was still
    // being decoded, and one that waited for a slow bucket blocked others.
    #[tokio::test(flavor = "multi_thread")]
    async fn a_check_holds_its_turn_until_it_ends() {
        let limits = Limits { bytes: 4_000_000, pixels: 25_000_000 };
        let content = picture(5_000, 5_000, ImageFormat::Png);
        let checks = Arc::new(Checks::default());
        let begin = || {
            let (content, checks) = (content.clone(), Arc::clone(&checks));
            tokio::spawn(async move {
                let mut spool = Spool::new(limits).await.unwrap();
                spool.push(&content).await.unwrap();
                spool.keep(&Stuck, &checks, &member("ann"), limits).await.map(|_| ())
            })
        };
        let free = async |count: usize| {
            let turned = async {
                while checks.turn.available_permits() != count {
                    tokio::time::sleep(std::time::Duration::from_millis(1)).await;
                }
            };
            tokio::time::timeout(std::time::Duration::from_secs(30), turned)
                .await
                .expect("a turn is taken and given back");
        };

        let leaving = begin();
        free(0).await;
        leaving.abort();
        assert!(leaving.await.unwrap_err().is_cancelled());
        assert_eq!(checks.turn.available_permits(), 0, "the picture is still being decoded");
        free(1).await;

        let storing = begin();
        free(0).await;
        free(1).await;
        assert!(!storing.is_finished());
        storing.abort();
    }

    #[test]
    fn media_names_cannot_leave_the_folder() {
        let name = format!("{}.png", "0a".repeat(32));
        assert_eq!(name.parse::<MediaName>().unwrap().to_string(), name);
        for bad in ["", "..", "a.png", "../../etc/passwd", &"0A".repeat(32), &format!("{}.svg", "0a".repeat(32))] {
            assert!(bad.parse::<MediaName>().is_err(), "{bad}");
        }
        assert!(format!("{}.png", "é".repeat(32)).parse::<MediaName>().is_err());
        assert!(format!("+{}.png", "a".repeat(63)).parse::<MediaName>().is_err());
    }
}
