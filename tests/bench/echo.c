/* Load of WebSocket messages: each connection sends one and waits for its echo. Arguments: port, connections,
 * seconds, bytes in a message (up to 125). Prints how many echoes came.
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
#include <time.h>
#include <unistd.h>

enum { MAX_CONNECTIONS = 1024, EVENTS = 256 };

static double now(void)
{
    struct timespec t;
    clock_gettime(CLOCK_MONOTONIC, &t);
    return (double)t.tv_sec + (double)t.tv_nsec / 1e9;
}

static void fail(const char *what)
{
    fprintf(stderr, "%s: %s\n", what, strerror(errno));
    exit(1);
}

static int opened(int port)
{
    const char *request = "GET /ws HTTP/1.1\r\nHost: bench.test\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n"
                          "Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\nSec-WebSocket-Version: 13\r\n\r\n";
    struct sockaddr_in address = {.sin_family = AF_INET, .sin_port = htons((uint16_t)port),
                                  .sin_addr.s_addr = htonl(INADDR_LOOPBACK)};
    struct timeval patience = {.tv_sec = 5};
    char head[4096];
    size_t len = 0;
    int one = 1, fd = socket(AF_INET, SOCK_STREAM, 0);
    setsockopt(fd, SOL_SOCKET, SO_RCVTIMEO, &patience, sizeof patience);
    setsockopt(fd, IPPROTO_TCP, TCP_NODELAY, &one, sizeof one);
    if (connect(fd, (struct sockaddr *)&address, sizeof address)) fail("connect");
    if (send(fd, request, strlen(request), 0) < 0) fail("send");
    do {
        ssize_t n = recv(fd, head + len, sizeof head - 1 - len, 0);
        if (n <= 0) fail("no answer to the upgrade");
        len += (size_t)n;
        head[len] = 0;
    } while (!strstr(head, "\r\n\r\n"));
    if (strncmp(head, "HTTP/1.1 101", 12)) fprintf(stderr, "refused: %.40s\n", head), exit(1);
    return fd;
}

int main(int argc, char **argv)
{
    if (argc != 5) return 2;
    int port = atoi(argv[1]), connections = atoi(argv[2]), seconds = atoi(argv[3]), size = atoi(argv[4]);
    if (connections > MAX_CONNECTIONS || size > 125) return 2;
    int epoll = epoll_create1(0);
    size_t received[MAX_CONNECTIONS] = {0};
    int sockets[MAX_CONNECTIONS];
    char frame[6 + 125] = {(char)0x82, (char)(0x80 | size), 1, 2, 3, 4};
    unsigned long echoes = 0;
    for (int i = 0; i < connections; i++) {
        struct epoll_event event = {.events = EPOLLIN, .data.u32 = (uint32_t)i};
        sockets[i] = opened(port);
        epoll_ctl(epoll, EPOLL_CTL_ADD, sockets[i], &event);
    }
    double end = now() + seconds;
    for (int i = 0; i < connections; i++) send(sockets[i], frame, 6 + (size_t)size, 0);
    while (now() < end) {
        struct epoll_event events[EVENTS];
        int n = epoll_wait(epoll, events, EVENTS, 100);
        for (int k = 0; k < n; k++) {
            uint32_t i = events[k].data.u32;
            char echo[256];
            ssize_t got = recv(sockets[i], echo, sizeof echo, 0);
            if (got <= 0) fail("a connection was lost");
            received[i] += (size_t)got;
            if (received[i] < 2 + (size_t)size) continue;
            received[i] = 0;
            echoes++;
            if (send(sockets[i], frame, 6 + (size_t)size, MSG_NOSIGNAL) < 0) fail("send");
        }
    }
    printf("%lu\n", echoes);
    return 0;
}
