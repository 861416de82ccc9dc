/* The backend of all balancers under measurement: answers with as little work as possible, so that the core it
 * shares with the load generator is not what limits. Reads every kind of request body to its end. Arguments: ports.
 *
 *   /10k, /1m           that many bytes; anything else: 200 bytes
 *   Upgrade: websocket  101, then each frame (masked, up to 125 bytes) is sent back
 */
#define _GNU_SOURCE
#include <arpa/inet.h>
#include <errno.h>
#include <netinet/tcp.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/epoll.h>
#include <sys/socket.h>
#include <unistd.h>

enum { BUFFER = 256 * 1024, HELD = 8192, EVENTS = 256 };

enum state { HEAD, LENGTH, CHUNK_SIZE, CHUNK_DATA, CHUNK_CR, TRAILER, FRAMES };

struct connection {
    int fd, is_listener;
    enum state state;
    size_t left;          /* of the body, or of the chunk */
    size_t line;          /* bytes in the present line of a trailer */
    size_t held;          /* bytes of a head or frame that is not complete yet */
    const char *out;      /* what could not be written yet */
    size_t out_left;
    const char *answer;   /* for once the body has come */
    size_t answer_len;
    char buffer[HELD];
};

static char small[1024], medium[16 * 1024], *large;
static size_t small_len, medium_len, large_len;
static char switching[] = "HTTP/1.1 101 Switching Protocols\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n"
                          "Sec-WebSocket-Accept: s3pPLMBiTxaQ9kYGzzhZRbK+xOo=\r\n\r\n";
static char input[BUFFER + HELD];

static size_t response(char *to, size_t body)
{
    size_t n = (size_t)sprintf(to,
        "HTTP/1.1 200 OK\r\nServer: origin\r\nDate: Thu, 01 Jan 2026 00:00:00 GMT\r\nContent-Type: text/plain\r\n"
        "Content-Length: %zu\r\nCache-Control: max-age=60\r\nETag: \"5f3c-1a2b\"\r\nVary: Accept-Encoding\r\n\r\n", body);
    memset(to + n, 'x', body);
    return n + body;
}

static void finish(struct connection *c)
{
    close(c->fd);
    free(c);
}

/* 0: all written or to be continued; -1: the connection is gone. */
static int put(struct connection *c, const char *data, size_t len)
{
    if (c->out_left) {
        /* Pipelined answers behind a full socket: no client here does that. */
        return -1;
    }
    while (len) {
        ssize_t n = send(c->fd, data, len, MSG_NOSIGNAL);
        if (n < 0) {
            if (errno != EAGAIN) return -1;
            c->out = data;
            c->out_left = len;
            return 0;
        }
        data += n;
        len -= (size_t)n;
    }
    return 0;
}

static int answer(struct connection *c)
{
    c->state = HEAD;
    return put(c, c->answer, c->answer_len);
}

/* Case matters not in the names of fields; balancers write them in their own way. */
static const char *field(const char *head, size_t len, const char *name)
{
    size_t n = strlen(name);
    for (const char *p = memchr(head, '\n', len); p; p = memchr(p, '\n', len - (size_t)(p - head))) {
        p++;
        if ((size_t)(p - head) + n > len) return NULL;
        if (!strncasecmp(p, name, n)) return p + n;
    }
    return NULL;
}

static int begin(struct connection *c, const char *head, size_t len)
{
    const char *target = memchr(head, ' ', len), *value;
    c->answer = small, c->answer_len = small_len;
    if (target && !strncmp(target, " /10k", 5)) c->answer = medium, c->answer_len = medium_len;
    if (target && !strncmp(target, " /1m", 4)) c->answer = large, c->answer_len = large_len;
    if (head[0] == 'G') {
        if (target && !strncmp(target, " /ws", 4)) {
            c->state = FRAMES;
            return put(c, switching, sizeof switching - 1);
        }
        return answer(c);
    }
    if ((value = field(head, len, "content-length:"))) {
        c->left = strtoul(value, NULL, 10);
        c->state = LENGTH;
        return c->left ? 0 : answer(c);
    }
    if (field(head, len, "transfer-encoding:")) {
        c->state = CHUNK_SIZE;
        c->left = 0;
        return 0;
    }
    return answer(c);
}

static int hex(char ch)
{
    if (ch >= '0' && ch <= '9') return ch - '0';
    ch |= 0x20;
    return ch >= 'a' && ch <= 'f' ? ch - 'a' + 10 : -1;
}

/* Takes in what came. Returns how much was used, or -1. */
static ssize_t take(struct connection *c, char *data, size_t len)
{
    size_t at = 0;
    while (at < len) {
        char *p = data + at;
        size_t have = len - at;
        switch (c->state) {
        case HEAD: {
            char *end = memmem(p, have, "\r\n\r\n", 4);
            if (!end) return (ssize_t)at;
            at += (size_t)(end - p) + 4;
            if (begin(c, p, (size_t)(end - p) + 4)) return -1;
            break;
        }
        case LENGTH:
        case CHUNK_DATA: {
            size_t n = have < c->left ? have : c->left;
            at += n;
            c->left -= n;
            if (c->left) break;
            if (c->state == CHUNK_DATA) c->state = CHUNK_CR;
            else if (answer(c)) return -1;
            break;
        }
        case CHUNK_CR:
            at++;
            if (*p == '\n') c->state = CHUNK_SIZE;
            break;
        case CHUNK_SIZE:
            at++;
            if (*p == '\n') {
                c->state = c->left ? CHUNK_DATA : TRAILER;
                c->line = 0;
            } else if (hex(*p) >= 0) {
                c->left = c->left * 16 + (size_t)hex(*p);
            }
            break;
        case TRAILER:
            at++;
            if (*p == '\n') {
                if (!c->line && answer(c)) return -1;
                c->line = 0;
            } else if (*p != '\r') {
                c->line++;
            }
            break;
        case FRAMES: {
            if (have < 6) return (ssize_t)at;
            size_t n = (unsigned char)p[1] & 0x7f;
            if (n > 125) return -1;
            if (have < 6 + n) return (ssize_t)at;
            if ((p[0] & 0x0f) == 8) return -1;
            char frame[2 + 125] = {p[0], (char)n};
            for (size_t i = 0; i < n; i++) frame[2 + i] = p[6 + i] ^ p[2 + i % 4];
            at += 6 + n;
            if (send(c->fd, frame, 2 + n, MSG_NOSIGNAL) < 0) return -1;
            break;
        }
        }
    }
    return (ssize_t)at;
}

static int readable(struct connection *c, int has_ended)
{
    for (;;) {
        memcpy(input, c->buffer, c->held);
        ssize_t n = recv(c->fd, input + c->held, BUFFER, 0);
        if (n <= 0) return n < 0 && errno == EAGAIN ? 0 : -1;
        size_t len = c->held + (size_t)n;
        ssize_t used = take(c, input, len);
        if (used < 0 || len - (size_t)used > HELD) return -1;
        c->held = len - (size_t)used;
        memcpy(c->buffer, input + used, c->held);
        /* Less than asked for: all has been read, and what comes later is another event. */
        if (n < BUFFER && !has_ended) return 0;
    }
}

static int writable(struct connection *c)
{
    size_t left = c->out_left;
    c->out_left = 0;
    return left ? put(c, c->out, left) : 0;
}

static void watch(int epoll, struct connection *c, uint32_t events)
{
    struct epoll_event event = {.events = events, .data.ptr = c};
    if (epoll_ctl(epoll, EPOLL_CTL_ADD, c->fd, &event)) perror("epoll_ctl"), exit(1);
}

static void accepted(int epoll, int listener)
{
    int fd, one = 1;
    while ((fd = accept4(listener, NULL, NULL, SOCK_NONBLOCK | SOCK_CLOEXEC)) >= 0) {
        struct connection *c = calloc(1, sizeof *c);
        setsockopt(fd, IPPROTO_TCP, TCP_NODELAY, &one, sizeof one);
        c->fd = fd;
        watch(epoll, c, EPOLLIN | EPOLLOUT | EPOLLRDHUP | EPOLLET);
    }
}

int main(int argc, char **argv)
{
    int epoll = epoll_create1(0), one = 1;
    large = malloc(1024 + 1024 * 1024);
    small_len = response(small, 200);
    medium_len = response(medium, 10 * 1024);
    large_len = response(large, 1024 * 1024);
    for (int i = 1; i < argc; i++) {
        struct connection *c = calloc(1, sizeof *c);
        struct sockaddr_in address = {.sin_family = AF_INET, .sin_port = htons((uint16_t)atoi(argv[i])),
                                      .sin_addr.s_addr = htonl(INADDR_LOOPBACK)};
        c->fd = socket(AF_INET, SOCK_STREAM | SOCK_NONBLOCK | SOCK_CLOEXEC, 0);
        c->is_listener = 1;
        setsockopt(c->fd, SOL_SOCKET, SO_REUSEADDR, &one, sizeof one);
        if (bind(c->fd, (struct sockaddr *)&address, sizeof address) || listen(c->fd, 4096)) perror(argv[i]), exit(1);
        watch(epoll, c, EPOLLIN);
    }
    for (;;) {
        struct epoll_event events[EVENTS];
        int n = epoll_wait(epoll, events, EVENTS, -1);
        for (int i = 0; i < n; i++) {
            struct connection *c = events[i].data.ptr;
            uint32_t end = events[i].events & (EPOLLRDHUP | EPOLLHUP | EPOLLERR);
            if (c->is_listener) accepted(epoll, c->fd);
            else if (writable(c) || (((events[i].events & EPOLLIN) || end) && readable(c, end != 0))) finish(c);
        }
    }
}
