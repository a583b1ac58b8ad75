// The floor: one thread, one epoll, and nothing that a server could be asked to leave out. Also the origin, and a
// client that throws bodies away.
//   bare fixed  PORT SIZE                         answers each request head with a prebuilt 200 of SIZE bytes
//   bare file   PORT FILE                         answers each request head with FILE, by sendfile
//   bare relay  PORT ORIGIN                       relays each connection to one of its own to the port ORIGIN
//   bare splice PORT ORIGIN                       the same; answers go through a pipe, by splice
//   bare sink   PORT CONNECTIONS SECONDS PATH     asks for PATH over and over; prints one JSON line
#define _GNU_SOURCE
#include <arpa/inet.h>
#include <errno.h>
#include <fcntl.h>
#include <netinet/in.h>
#include <netinet/tcp.h>
#include <signal.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/epoll.h>
#include <sys/resource.h>
#include <sys/sendfile.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <time.h>
#include <unistd.h>

enum { MAX_FDS = 65536, BUFFER = 256 << 10, PIPE = 1 << 20, EVENTS = 512, LATENCIES = 1 << 22 };

static void die(const char *what) {
    perror(what);
    exit(1);
}

// ---- sockets

static struct sockaddr_in loopback(int port) {
    struct sockaddr_in address = {.sin_family = AF_INET, .sin_port = htons(port)};
    address.sin_addr.s_addr = htonl(INADDR_LOOPBACK);
    return address;
}

static void no_delay(int fd) {
    int on = 1;
    setsockopt(fd, IPPROTO_TCP, TCP_NODELAY, &on, sizeof on);
}

static int listen_on(int port) {
    int fd = socket(AF_INET, SOCK_STREAM | SOCK_NONBLOCK, 0), on = 1;
    setsockopt(fd, SOL_SOCKET, SO_REUSEADDR, &on, sizeof on);
    struct sockaddr_in address = loopback(port);
    if (bind(fd, (void *)&address, sizeof address) || listen(fd, 4096)) die("listen");
    return fd;
}

static int accept_on(int listener) {
    int fd = accept4(listener, 0, 0, SOCK_NONBLOCK);
    if (fd >= MAX_FDS) close(fd), fd = -1;
    if (fd >= 0) no_delay(fd);
    return fd;
}

static int dial(int port) {
    int fd = socket(AF_INET, SOCK_STREAM, 0);
    struct sockaddr_in address = loopback(port);
    if (fd >= MAX_FDS || connect(fd, (void *)&address, sizeof address)) die("connect");
    no_delay(fd);
    fcntl(fd, F_SETFL, O_NONBLOCK);
    return fd;
}

static void watch(int epoll, int fd) {
    struct epoll_event event = {.events = EPOLLIN | EPOLLOUT | EPOLLRDHUP | EPOLLET, .data.fd = fd};
    if (epoll_ctl(epoll, EPOLL_CTL_ADD, fd, &event)) die("epoll_ctl");
}

static int has_ended(const struct epoll_event *event) {
    return (event->events & (EPOLLRDHUP | EPOLLHUP | EPOLLERR)) != 0;
}

static int is_readable(const struct epoll_event *event) {
    return (event->events & EPOLLIN) || has_ended(event);
}

// The loop of every server: accepted connections go to `begin`, their events to `serve`.
static void serve_on(int port, void (*begin)(int epoll, int fd), void (*serve)(const struct epoll_event *event)) {
    int epoll = epoll_create1(0), listener = listen_on(port);
    struct epoll_event accepting = {.events = EPOLLIN, .data.fd = listener}, events[EVENTS];
    if (epoll_ctl(epoll, EPOLL_CTL_ADD, listener, &accepting)) die("epoll_ctl");
    for (;;) {
        int count = epoll_wait(epoll, events, EVENTS, -1);
        for (int i = 0; i < count; i++) {
            int fd;
            if (events[i].data.fd != listener) serve(&events[i]);
            else while ((fd = accept_on(listener)) >= 0) begin(epoll, fd);
        }
    }
}

// ---- fixed and file: one answer for every request

static struct {
    char *bytes;        // the head, and behind it the body where it is in memory
    size_t length, total;
    int file;           // where the body is, or -1
} answer = {.file = -1};

static struct { uint32_t owed; size_t sent; } answering[MAX_FDS];

static void begin_answering(int epoll, int fd) {
    memset(&answering[fd], 0, sizeof answering[fd]);
    watch(epoll, fd);
}

static int count_heads(const char *bytes, ssize_t length) {
    int count = 0;
    const char *at = bytes, *end = bytes + length;
    while ((at = memmem(at, end - at, "\r\n\r\n", 4))) count++, at += 4;
    return count;
}

static int send_owed(int fd) {
    while (answering[fd].owed) {
        size_t at = answering[fd].sent;
        ssize_t sent;
        if (at < answer.length) {
            int flags = MSG_NOSIGNAL | (answer.file >= 0 ? MSG_MORE : 0);
            sent = send(fd, answer.bytes + at, answer.length - at, flags);
        } else {
            off_t offset = at - answer.length;
            sent = sendfile(fd, answer.file, &offset, answer.total - at);
        }
        if (sent < 0) return errno == EAGAIN ? 0 : -1;
        answering[fd].sent += sent;
        if (answering[fd].sent == answer.total) answering[fd].sent = 0, answering[fd].owed--;
    }
    return 0;
}

static void serve_answers(const struct epoll_event *event) {
    static char buffer[BUFFER];
    int fd = event->data.fd, over = has_ended(event);
    ssize_t got = is_readable(event) ? sizeof buffer : 0;
    while (got == sizeof buffer) {
        got = read(fd, buffer, sizeof buffer);
        if (got > 0) answering[fd].owed += count_heads(buffer, got);
        else if (got == 0 || errno != EAGAIN) over = 1;
    }
    if (send_owed(fd) < 0) over = 1;
    if (over) close(fd);
}

static void prepare_answer(size_t size) {
    answer.bytes = malloc(size + 512);
    const char *head = "HTTP/1.1 200 OK\r\nContent-Type: text/plain\r\nContent-Length: %zu\r\n\r\n";
    answer.length = sprintf(answer.bytes, head, size);
    answer.total = answer.length + size;
    if (answer.file >= 0) return;
    for (size_t i = 0; i < size; i++) answer.bytes[answer.length + i] = i % 64 == 63 ? '\n' : 'a' + i % 23;
    answer.length = answer.total;
}

// ---- relay and splice: what comes on one connection goes to the other

static struct half {
    int other, pipe[2], to_client;
    char *left;         // what the other side had no room for, where it isn't in the pipe
    size_t offset, length;
} halves[MAX_FDS];
static int origin_port, by_splice;

static void begin_relaying(int epoll, int client) {
    int origin = dial(origin_port);
    halves[client] = (struct half){.other = origin};
    halves[origin] = (struct half){.other = client, .to_client = 1};
    watch(epoll, client);
    watch(epoll, origin);
}

static void end_both(int fd) {
    int both[] = {fd, halves[fd].other};
    for (int i = 0; i < 2; i++) {
        struct half *half = &halves[both[i]];
        free(half->left);
        if (half->pipe[0]) close(half->pipe[0]), close(half->pipe[1]);
        *half = (struct half){.other = -1};
        close(both[i]);
    }
}

// 1: all of it went on; 0: no room now; -1: it is over.
static int send_left(struct half *half) {
    while (half->length) {
        ssize_t sent = half->left
            ? send(half->other, half->left + half->offset, half->length, MSG_NOSIGNAL)
            : splice(half->pipe[0], 0, half->other, 0, half->length, SPLICE_F_NONBLOCK | SPLICE_F_MOVE);
        if (sent < 0) return errno == EAGAIN ? 0 : -1;
        half->offset += sent, half->length -= sent;
    }
    free(half->left);
    half->left = 0;
    return 1;
}

static int splice_on(int fd) {
    struct half *half = &halves[fd];
    if (!half->pipe[0] && (pipe2(half->pipe, O_NONBLOCK) || fcntl(half->pipe[1], F_SETPIPE_SZ, PIPE) < 0)) die("pipe");
    for (;;) {
        int went = send_left(half);
        if (went < 1) return went;
        ssize_t got = splice(fd, 0, half->pipe[1], 0, PIPE, SPLICE_F_NONBLOCK | SPLICE_F_MOVE);
        if (got <= 0) return got < 0 && errno == EAGAIN ? 0 : -1;
        half->length = got, half->offset = 0;
    }
}

static int copy_on(int fd) {
    static char buffer[BUFFER];
    struct half *half = &halves[fd];
    for (;;) {
        int went = send_left(half);
        if (went < 1) return went;
        ssize_t got = read(fd, buffer, sizeof buffer);
        if (got <= 0) return got < 0 && errno == EAGAIN ? 0 : -1;
        // As much as any proxy looks for.
        if (!half->to_client && !memmem(buffer, got, "\r\n\r\n", 4)) return -1;
        ssize_t sent = send(half->other, buffer, got, MSG_NOSIGNAL);
        if (sent < 0 && errno != EAGAIN) return -1;
        if (sent < 0) sent = 0;
        if (sent < got) {
            half->length = got - sent, half->offset = 0, half->left = malloc(got - sent);
            memcpy(half->left, buffer + sent, got - sent);
            return 0;
        }
        if (got < (ssize_t)sizeof buffer) return 0;
    }
}

static int move_on(int fd) {
    return by_splice && halves[fd].to_client ? splice_on(fd) : copy_on(fd);
}

static void serve_relay(const struct epoll_event *event) {
    int fd = event->data.fd, other = halves[fd].other, over = 0;
    if (other < 0) return;
    if (is_readable(event)) over = move_on(fd) < 0;
    if (!over && (event->events & EPOLLOUT) && halves[other].length) over = move_on(other) < 0;
    if (over || has_ended(event)) end_both(fd);
}

// ---- sink: a client

static struct { size_t left; int in_body; double asked; } asking[MAX_FDS];
static float latencies[LATENCIES];
static uint64_t requests;

static double now(void) {
    struct timespec time;
    clock_gettime(CLOCK_MONOTONIC, &time);
    return time.tv_sec + time.tv_nsec / 1e9;
}

static void ask(int fd, const char *request) {
    asking[fd].in_body = 0, asking[fd].asked = now();
    if (write(fd, request, strlen(request)) != (ssize_t)strlen(request)) die("write");
}

// Reads a head; returns how much of the body came with it.
static size_t read_head(char *bytes, ssize_t length, size_t *body) {
    bytes[length] = 0;
    char *end = strstr(bytes, "\r\n\r\n"), *size = strcasestr(bytes, "\r\ncontent-length:");
    if (!end || !size || strncmp(bytes, "HTTP/1.1 200", 12)) {
        fprintf(stderr, "not an answer to count: %.300s\n", bytes);
        exit(1);
    }
    *body = strtoull(size + 17, 0, 10);
    return length - (end + 4 - bytes);
}

static void take(int fd, const char *request) {
    char head[4097];
    for (;;) {
        int in_body = asking[fd].in_body;
        ssize_t got = in_body ? recv(fd, 0, asking[fd].left, MSG_TRUNC) : recv(fd, head, sizeof head - 1, 0);
        if (got < 0 && errno == EAGAIN) return;
        if (got <= 0) fprintf(stderr, "the server closed a connection\n"), exit(1);
        if (!in_body) {
            got = read_head(head, got, &asking[fd].left);
            asking[fd].in_body = 1;
        }
        asking[fd].left -= got;
        if (asking[fd].left) continue;
        if (requests < LATENCIES) latencies[requests] = now() - asking[fd].asked;
        requests++;
        ask(fd, request);
    }
}

static int by_size(const void *a, const void *b) {
    float x = *(const float *)a, y = *(const float *)b;
    return (x > y) - (x < y);
}

static void sink(int port, int connections, double seconds, const char *path) {
    int epoll = epoll_create1(0);
    char request[512];
    struct epoll_event events[EVENTS];
    const char *head = "GET %s HTTP/1.1\r\nHost: localhost\r\nUser-Agent: sink\r\nAccept: */*\r\n\r\n";
    snprintf(request, sizeof request, head, path);
    double start = now();
    for (int i = 0; i < connections; i++) {
        int fd = dial(port);
        watch(epoll, fd);
        ask(fd, request);
    }
    while (now() < start + seconds) {
        int count = epoll_wait(epoll, events, EVENTS, 100);
        for (int i = 0; i < count; i++)
            if (is_readable(&events[i])) take(events[i].data.fd, request);
    }
    double took = now() - start;
    size_t known = requests < LATENCIES ? requests : LATENCIES;
    qsort(latencies, known, sizeof *latencies, by_size);
    printf("{\"requests\":%lu,\"errors\":0,\"seconds\":%.4f,\"p50_us\":%.1f,\"p99_us\":%.1f}\n", requests, took,
           latencies[known / 2] * 1e6, latencies[known * 99 / 100] * 1e6);
}

int main(int count, char **words) {
    signal(SIGPIPE, SIG_IGN);
    struct rlimit files;
    getrlimit(RLIMIT_NOFILE, &files);
    files.rlim_cur = files.rlim_max;
    setrlimit(RLIMIT_NOFILE, &files);
    const char *mode = count > 1 ? words[1] : "";
    if (!strcmp(mode, "fixed") && count == 4) {
        prepare_answer(strtoull(words[3], 0, 10));
        serve_on(atoi(words[2]), begin_answering, serve_answers);
    } else if (!strcmp(mode, "file") && count == 4) {
        struct stat about;
        answer.file = open(words[3], O_RDONLY);
        if (answer.file < 0 || fstat(answer.file, &about)) die(words[3]);
        prepare_answer(about.st_size);
        serve_on(atoi(words[2]), begin_answering, serve_answers);
    } else if ((!strcmp(mode, "relay") || !strcmp(mode, "splice")) && count == 4) {
        origin_port = atoi(words[3]), by_splice = *mode == 's';
        serve_on(atoi(words[2]), begin_relaying, serve_relay);
    } else if (!strcmp(mode, "sink") && count == 6) {
        sink(atoi(words[2]), atoi(words[3]), atof(words[4]), words[5]);
        return 0;
    }
    fprintf(stderr, "see the head of bare.c\n");
    return 2;
}
