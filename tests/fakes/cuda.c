/* A stand-in for libcuda.so.1 whose answers come from a file of lines "key value", read at each call.
 *
 * The file is named by FAKE_CUDA_STATE, or is /etc/fake-cuda. code: cuInit's result. count: GPUs. version: as
 * cuDriverGetVersion tells it. crash 1: cuInit ends the process with SIGSEGV. hang 1: cuInit never returns.
 * opens PATH: cuInit opens the file for reading and writing, as Tegra's library opens /dev/nvmap; where that is refused
 * it says so on stderr and answers 999, as that library does; where there is none, 100. noise 1: it prints on stdout.
 */
#include <errno.h>
#include <fcntl.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

static const char *text(const char *key)
{
    static char value[256];
    const char *path = getenv("FAKE_CUDA_STATE");
    FILE *file = fopen(path ? path : "/etc/fake-cuda", "r");
    char name[64], found[256];
    int is_there = 0;
    if (!file)
        return NULL;
    while (fscanf(file, "%63s %255s", name, found) == 2)
        if (strcmp(name, key) == 0) {
            strcpy(value, found);
            is_there = 1;
        }
    fclose(file);
    return is_there ? value : NULL;
}

static int number(const char *key, int otherwise)
{
    const char *value = text(key);
    return value ? atoi(value) : otherwise;
}

int cuInit(unsigned int flags)
{
    const char *node;
    (void)flags;
    if (number("noise", 0)) {
        printf("a driver's own words\n");
        fflush(stdout);
    }
    if (number("crash", 0))
        raise(SIGSEGV);
    while (number("hang", 0))
        pause();
    if ((node = text("opens"))) {
        int descriptor = open(node, O_RDWR | O_CLOEXEC);
        if (descriptor < 0 && (errno == EACCES || errno == EPERM)) {
            fprintf(stderr, "NvRmMemInitNvmap failed with %s\n", strerror(errno));
            return 999;
        }
        if (descriptor < 0)
            return 100;
        close(descriptor);
    }
    return number("code", 0);
}

int cuDriverGetVersion(int *version)
{
    *version = number("version", 12060);
    return 0;
}

int cuDeviceGetCount(int *count)
{
    *count = number("count", 1);
    return 0;
}

int cuDeviceGet(int *device, int place)
{
    *device = place;
    return 0;
}

int cuDeviceGetName(char *name, int length, int device)
{
    snprintf(name, length, "Fake GPU %d", device);
    return 0;
}
