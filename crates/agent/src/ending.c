// Processes that are hard to end, or to see, for the tests of `group`.

#include <pthread.h>
#include <stdlib.h>
#include <string.h>
#include <sys/prctl.h>
#include <sys/syscall.h>
#include <unistd.h>

enum { MANY = 20000 };

static void* stay(void* unused) {
    for (;;) pause();
    return unused;
}

static void say_ready(void) {
    if (write(1, "ready\n", 6) != 6) _exit(1);
}

int main(int count, char** words) {
    const char* what = count > 1 ? words[1] : "";
    // Nothing stays for long where a test could not end it; an exec leaves the alarm as it is.
    if (count < MANY) alarm(600);
    if (strcmp(what, "large") == 0) {
        // So many pages that giving them up takes a while.
        prctl(PR_SET_THP_DISABLE, 1, 0, 0, 0);
        size_t bytes = (size_t)256 << 20;
        char* memory = malloc(bytes);
        if (memory == NULL) return 1;
        memset(memory, 1, bytes);
        say_ready();
        stay(NULL);
    }
    if (strcmp(what, "headless") == 0) {
        // The main thread ends, which makes it a zombie; the other one goes on.
        pthread_t other;
        if (pthread_create(&other, NULL, stay, NULL) != 0) return 1;
        say_ready();
        syscall(SYS_exit, 0);
    }
    if (strcmp(what, "restless") == 0) {
        // In the middle of an exec for a good part of its time: the kernel lays out all these words
        // after the old program's memory is gone and before the new one's environment is known.
        static char* many[MANY + 1];
        for (int i = 0; i < MANY; i++) many[i] = i < count ? words[i] : "x";
        execv("/proc/self/exe", many);
    }
    return 1;
}
