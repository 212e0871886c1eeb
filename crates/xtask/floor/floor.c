/* What the kernel itself charges for the things that proffer does: to start a process and wait for it, alone, in
 * cgroups of its own, or in a container; to make an append durable; to send a message to and fro over loopback. One
 * JSON object per call:
 *
 *   floor spawn N [P]             N times posix_spawn of /bin/true, P at once
 *   floor cg N [P]                N times: make a cgroup in each of cpu, memory and pids (on v2 one), fork, enter,
 *                                 execute /bin/true, remove the cgroups
 *   floor nscg N P DIR TRUE       N times: the same in new mount, pid, ipc and host name namespaces, with a root of
 *                                 its own: an overlay on a tmpfs, and /proc. DIR is made and removed; TRUE is a static
 *                                 program
 *   floor fsync N FILE            N times append 4096 bytes and fdatasync; FILE is made and removed
 *   floor ping N                  N times 64 bytes there and back over TCP on 127.0.0.1
 *
 * Cgroups are named proffer-floor.PID and removed; the tmpfs is mounted in a mount namespace of this process only.
 */
#define _GNU_SOURCE
#include <errno.h>
#include <fcntl.h>
#include <netinet/in.h>
#include <netinet/tcp.h>
#include <sched.h>
#include <signal.h>
#include <spawn.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mount.h>
#include <sys/resource.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/syscall.h>
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

static char *const TRUE_ARGV[] = {"true", NULL};

static void reap(pid_t pid) {
    int status;
    if (waitpid(pid, &status, 0) != pid || status != 0) {
        fprintf(stderr, "child %d ended with status %x\n", (int)pid, status);
        exit(1);
    }
}

static void spawn_once(int worker, int i) {
    (void)worker, (void)i;
    pid_t pid;
    if (posix_spawn(&pid, "/bin/true", NULL, NULL, TRUE_ARGV, environ) != 0) die("posix_spawn /bin/true");
    reap(pid);
}

/* The directories below which each worker makes its groups. */
static char groups[3][128];
static int hierarchies;

static void groups_open(void) {
    const char *v1[] = {"cpu", "memory", "pids"};
    int has_v1 = access("/sys/fs/cgroup/memory/cgroup.procs", F_OK) == 0;
    hierarchies = has_v1 ? 3 : 1;
    for (int c = 0; c < hierarchies; c++) {
        const char *root = has_v1 ? v1[c] : ".";
        snprintf(groups[c], sizeof groups[c], "/sys/fs/cgroup/%s/proffer-floor.%d", root, (int)getpid());
        if (mkdir(groups[c], 0755) != 0) die(groups[c]);
        if (!has_v1) {
            char path[640];
            snprintf(path, sizeof path, "%s/cgroup.subtree_control", groups[c]);
            int fd = open(path, O_WRONLY | O_CLOEXEC);
            if (fd < 0 || write(fd, "+cpu +memory +pids", 18) < 0) die(path);
            close(fd);
        }
    }
}

static void groups_close(void) {
    for (int c = 0; c < hierarchies; c++) rmdir(groups[c]);
}

static void group_path(char *out, size_t size, int c, int worker, int i, const char *file) {
    snprintf(out, size, "%s/w%d.%d%s", groups[c], worker, i, file);
}

static void group_make(int worker, int i) {
    char path[640];
    for (int c = 0; c < hierarchies; c++) {
        group_path(path, sizeof path, c, worker, i, "");
        if (mkdir(path, 0755) != 0) die(path);
    }
}

static void group_enter(int worker, int i, pid_t pid) {
    char path[640], number[16];
    int length = snprintf(number, sizeof number, "%d", (int)pid);
    for (int c = 0; c < hierarchies; c++) {
        group_path(path, sizeof path, c, worker, i, "/cgroup.procs");
        int fd = open(path, O_WRONLY | O_CLOEXEC);
        if (fd < 0 || write(fd, number, (size_t)length) != length) die(path);
        close(fd);
    }
}

static void group_remove(int worker, int i) {
    char path[640];
    for (int c = 0; c < hierarchies; c++) {
        group_path(path, sizeof path, c, worker, i, "");
        for (int tries = 0; rmdir(path) != 0; tries++) {
            if (errno != EBUSY || tries > 2000) die(path);
            usleep(50);
        }
    }
}

/* Where the containers' roots are made, and what is below all of them. */
static const char *work;
static char lower[160];

static void root_path(char *out, size_t size, int worker, int i, const char *part) {
    snprintf(out, size, "%s/w%d.%d%s", work, worker, i, part);
}

static const char *const ROOT_PARTS[] = {"", "/upper", "/work", "/root"};

static void root_make(int worker, int i) {
    char path[640];
    for (int p = 0; p < 4; p++) {
        root_path(path, sizeof path, worker, i, ROOT_PARTS[p]);
        if (mkdir(path, 0755) != 0) die(path);
    }
}

static void root_remove(int worker, int i) {
    char path[640];
    root_path(path, sizeof path, worker, i, "/work/work");
    rmdir(path);
    for (int p = 3; p >= 0; p--) {
        root_path(path, sizeof path, worker, i, ROOT_PARTS[p]);
        if (rmdir(path) != 0) die(path);
    }
}

static void root_enter(int worker, int i) {
    char root[640], upper[640], works[640], options[2048];
    root_path(root, sizeof root, worker, i, "/root");
    root_path(upper, sizeof upper, worker, i, "/upper");
    root_path(works, sizeof works, worker, i, "/work");
    snprintf(options, sizeof options, "lowerdir=%s,upperdir=%s,workdir=%s", lower, upper, works);
    if (mount(NULL, "/", NULL, MS_REC | MS_PRIVATE, NULL) != 0) die("make mounts private");
    if (mount("overlay", root, "overlay", 0, options) != 0) die("mount overlay");
    if (chdir(root) != 0 || syscall(SYS_pivot_root, ".", ".") != 0) die("pivot_root");
    if (umount2(".", MNT_DETACH) != 0 || chdir("/") != 0) die("leave the old root");
    if (mount("proc", "/proc", "proc", 0, NULL) != 0) die("mount /proc");
    if (sethostname("task", 4) != 0) die("sethostname");
}

static void contained_once(int worker, int i, int namespaces) {
    int gate[2];
    if (pipe2(gate, O_CLOEXEC) != 0) die("pipe");
    group_make(worker, i);
    if (namespaces) root_make(worker, i);
    int flags = namespaces ? CLONE_NEWNS | CLONE_NEWPID | CLONE_NEWIPC | CLONE_NEWUTS : 0;
    pid_t pid = (pid_t)syscall(SYS_clone, flags | SIGCHLD, 0, 0, 0, 0);
    if (pid < 0) die("clone");
    if (pid == 0) {
        char byte;
        close(gate[1]);
        if (read(gate[0], &byte, 1) != 1) _exit(126);
        if (namespaces) root_enter(worker, i);
        execv("/bin/true", TRUE_ARGV);
        _exit(127);
    }
    group_enter(worker, i, pid);
    if (write(gate[1], "x", 1) != 1) die("open the gate");
    close(gate[0]);
    close(gate[1]);
    reap(pid);
    group_remove(worker, i);
    if (namespaces) root_remove(worker, i);
}

static void cg_once(int worker, int i) { contained_once(worker, i, 0); }

static void nscg_once(int worker, int i) { contained_once(worker, i, 1); }

/* A tmpfs on `work` in a mount namespace of our own, and on it what all containers have below their overlay. */
static void roots_open(const char *dir, const char *program) {
    char path[640], buffer[65536];
    work = dir;
    if (mkdir(dir, 0755) != 0) die(dir);
    if (unshare(CLONE_NEWNS) != 0 || mount(NULL, "/", NULL, MS_REC | MS_PRIVATE, NULL) != 0) die("unshare");
    if (mount("proffer-floor", dir, "tmpfs", 0, NULL) != 0) die("mount tmpfs");
    snprintf(lower, sizeof lower, "%s/lower", dir);
    const char *dirs[] = {"", "/bin", "/proc"};
    for (int d = 0; d < 3; d++) {
        snprintf(path, sizeof path, "%s%s", lower, dirs[d]);
        if (mkdir(path, 0755) != 0) die(path);
    }
    snprintf(path, sizeof path, "%s/bin/true", lower);
    int from = open(program, O_RDONLY | O_CLOEXEC), to = open(path, O_WRONLY | O_CREAT | O_CLOEXEC, 0755);
    if (from < 0 || to < 0) die(program);
    for (ssize_t n; (n = read(from, buffer, sizeof buffer)) > 0;)
        if (write(to, buffer, (size_t)n) != n) die(path);
    close(from);
    close(to);
}

static void roots_close(void) {
    umount2(work, MNT_DETACH);
    rmdir(work);
}

static int file_fd;

static void fsync_once(int worker, int i) {
    (void)worker, (void)i;
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

static void ping_once(int worker, int i) {
    (void)worker, (void)i;
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

/* Of this process and of all that it has waited for, in seconds. */
static double processor_time(void) {
    double sum = 0;
    int whose[] = {RUSAGE_SELF, RUSAGE_CHILDREN};
    for (int w = 0; w < 2; w++) {
        struct rusage usage;
        getrusage(whose[w], &usage);
        sum += usage.ru_utime.tv_sec + usage.ru_stime.tv_sec + (usage.ru_utime.tv_usec + usage.ru_stime.tv_usec) * 1e-6;
    }
    return sum;
}

/* Measures n times `once`, by `at_once` processes; how long it took in all. */
static double measure(void (*once)(int, int), int n, int at_once, double *took) {
    if (at_once == 1) {
        double start = now();
        for (int i = 0; i < n; i++) {
            double before = now();
            once(0, i);
            took[i] = now() - before;
        }
        return now() - start;
    }
    int results[2];
    if (pipe2(results, O_CLOEXEC) != 0) die("pipe");
    double start = now();
    for (int worker = 0; worker < at_once; worker++) {
        pid_t pid = fork();
        if (pid < 0) die("fork");
        if (pid > 0) continue;
        for (int i = 0; i < n / at_once; i++) {
            double before = now();
            once(worker, i);
            took[i] = now() - before;
        }
        for (int i = 0; i < n / at_once; i++)
            if (write(results[1], &took[i], sizeof *took) != sizeof *took) die("write");
        _exit(0);
    }
    close(results[1]);
    int got = 0;
    while (got < n && read(results[0], &took[got], sizeof *took) == sizeof *took) got++;
    double all = now() - start;
    while (wait(NULL) > 0) {
    }
    if (got != n) {
        fprintf(stderr, "a worker failed\n");
        exit(1);
    }
    return all;
}

int main(int argc, char **argv) {
    int n = argc > 2 ? atoi(argv[2]) : 0;
    const char *mode = argc > 1 ? argv[1] : "";
    int launches = strcmp(mode, "spawn") == 0 || strcmp(mode, "cg") == 0 || strcmp(mode, "nscg") == 0;
    int at_once = launches && argc > 3 ? atoi(argv[3]) : 1;
    void (*once)(int, int) = NULL;
    pid_t peer = 0;
    if (strcmp(mode, "spawn") == 0) once = spawn_once;
    if (strcmp(mode, "cg") == 0) once = cg_once;
    if (strcmp(mode, "nscg") == 0 && argc > 5) once = nscg_once;
    if (strcmp(mode, "ping") == 0) once = ping_once;
    if (strcmp(mode, "fsync") == 0 && argc > 3) once = fsync_once;
    if (once == NULL || n < 1 || at_once < 1) {
        fprintf(stderr, "usage: floor spawn|cg N [P] | nscg N P DIR TRUE | fsync N FILE | ping N\n");
        return 2;
    }
    n -= n % at_once;
    if (once == cg_once || once == nscg_once) groups_open();
    if (once == nscg_once) roots_open(argv[4], argv[5]);
    if (once == ping_once) peer = ping_open();
    if (once == fsync_once) {
        file_fd = open(argv[3], O_WRONLY | O_CREAT | O_EXCL | O_APPEND | O_CLOEXEC, 0600);
        if (file_fd < 0) die(argv[3]);
    }
    double *took = malloc(sizeof *took * (size_t)n);
    if (took == NULL) die("malloc");
    double used = processor_time();
    double all = measure(once, n, at_once, took);
    used = processor_time() - used;
    if (once == cg_once || once == nscg_once) groups_close();
    if (once == nscg_once) roots_close();
    if (once == fsync_once) unlink(argv[3]);
    if (peer != 0) {
        close(ping_fd);
        waitpid(peer, NULL, 0);
    }
    qsort(took, (size_t)n, sizeof *took, compare);
    printf("{\"bench\":\"floor\",\"what\":\"%s\",\"n\":%d,\"at_once\":%d,\"per_second\":%.1f,\"p50_us\":%.1f,\"p99_us\":%.1f,"
           "\"cpu_us_each\":%.1f}\n",
           mode, n, at_once, n / all, took[n / 2] * 1e6, took[(int)(n * 0.99)] * 1e6, used / n * 1e6);
    return 0;
}
