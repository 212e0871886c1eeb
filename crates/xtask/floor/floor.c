/* What the kernel itself charges for the things that proffer does: to start a process and wait for it, to make an
 * append durable, and to send a message to and fro over loopback. One JSON object per call:
 *
 *   floor spawn N           N times posix_spawn of /bin/true, one after the other
 *   floor fsync N FILE      N times append 4096 bytes and fdatasync; FILE is made and removed
 *   floor ping N            N times 64 bytes there and back over TCP on 127.0.0.1
 */
#define _GNU_SOURCE
#include <fcntl.h>
#include <netinet/in.h>
#include <netinet/tcp.h>
#include <spawn.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

extern char **environ;

static void die(const char *what) {
    perror(what);
    exit(1);
}

static double now(void) {
    struct timespec t;
    clock_gettime(CLOCK_MONOTONIC, &t);
    return t.tv_sec + t.tv_nsec * 1e-9;
}

static int compare(const void *a, const void *b) {
    double x = *(const double *)a, y = *(const double *)b;
    return x < y ? -1 : x > y;
}

static void spawn_once(void) {
    char *argv[] = {"true", NULL};
    pid_t pid;
    int status;
    if (posix_spawn(&pid, "/bin/true", NULL, NULL, argv, environ) != 0) die("posix_spawn /bin/true");
    if (waitpid(pid, &status, 0) != pid || status != 0) die("waitpid");
}

static int file_fd;

static void fsync_once(void) {
    static char block[4096];
    if (write(file_fd, block, sizeof block) != sizeof block) die("write");
    if (fdatasync(file_fd) != 0) die("fdatasync");
}

static int ping_fd;

static void whole(int fd, char *bytes, size_t length, int sending) {
    while (length > 0) {
        ssize_t done = sending ? write(fd, bytes, length) : read(fd, bytes, length);
        if (done <= 0) {
            if (!sending && done == 0) _exit(0);
            die("socket");
        }
        bytes += done;
        length -= (size_t)done;
    }
}

static void ping_once(void) {
    char message[64] = {0};
    whole(ping_fd, message, sizeof message, 1);
    whole(ping_fd, message, sizeof message, 0);
}

static pid_t ping_open(void) {
    struct sockaddr_in address = {.sin_family = AF_INET, .sin_addr.s_addr = htonl(INADDR_LOOPBACK)};
    socklen_t length = sizeof address;
    int yes = 1, listener = socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0);
    if (listener < 0 || bind(listener, (void *)&address, sizeof address) != 0 || listen(listener, 1) != 0) die("listen");
    if (getsockname(listener, (void *)&address, &length) != 0) die("getsockname");
    pid_t pid = fork();
    if (pid < 0) die("fork");
    if (pid == 0) {
        int fd = accept(listener, NULL, NULL);
        char message[64];
        if (fd < 0) die("accept");
        setsockopt(fd, IPPROTO_TCP, TCP_NODELAY, &yes, sizeof yes);
        for (;;) {
            whole(fd, message, sizeof message, 0);
            whole(fd, message, sizeof message, 1);
        }
    }
    close(listener);
    ping_fd = socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0);
    if (ping_fd < 0 || connect(ping_fd, (void *)&address, sizeof address) != 0) die("connect");
    setsockopt(ping_fd, IPPROTO_TCP, TCP_NODELAY, &yes, sizeof yes);
    return pid;
}

int main(int argc, char **argv) {
    int n = argc > 2 ? atoi(argv[2]) : 0;
    const char *mode = argc > 1 ? argv[1] : "";
    void (*once)(void) = NULL;
    pid_t peer = 0;
    if (strcmp(mode, "spawn") == 0) once = spawn_once;
    if (strcmp(mode, "ping") == 0) once = ping_once;
    if (strcmp(mode, "fsync") == 0 && argc > 3) once = fsync_once;
    if (once == NULL || n < 1) {
        fprintf(stderr, "usage: floor spawn N | fsync N FILE | ping N\n");
        return 2;
    }
    if (once == ping_once) peer = ping_open();
    if (once == fsync_once) {
        file_fd = open(argv[3], O_WRONLY | O_CREAT | O_EXCL | O_APPEND | O_CLOEXEC, 0600);
        if (file_fd < 0) die(argv[3]);
    }
    double *took = malloc(sizeof *took * (size_t)n);
    if (took == NULL) die("malloc");
    double start = now();
    for (int i = 0; i < n; i++) {
        double before = now();
        once();
        took[i] = now() - before;
    }
    double all = now() - start;
    if (once == fsync_once) unlink(argv[3]);
    if (peer != 0) {
        close(ping_fd);
        waitpid(peer, NULL, 0);
    }
    qsort(took, (size_t)n, sizeof *took, compare);
    printf("{\"bench\":\"floor\",\"what\":\"%s\",\"n\":%d,\"per_second\":%.1f,\"p50_us\":%.1f,\"p99_us\":%.1f}\n", mode, n,
           n / all, took[n / 2] * 1e6, took[(int)(n * 0.99)] * 1e6);
    return 0;
}
