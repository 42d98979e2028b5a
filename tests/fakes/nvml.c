/* A stand-in for libnvidia-ml.so.1 with one board whose answers come from a file, read anew at every call.
 *
 * The file named by FAKE_NVML_STATE has lines "key value": init, count, energy_status, energy_mj, power_status,
 * power_mw, field_status, field_mw, throttle, computing and drawing (a process each), orin, lost_board (its index),
 * live_mw (the counter goes on at this power, by the monotonic clock), init_hangs_s, read_hangs_s, mig (1: MIG is on),
 * instances (of MIG), computing_in_0 and so on (a process in each of them). A status is an nvmlReturn_t. A second board
 * has live_mw_1 and computing_1 of its own, if they are there.
 * Without the file no driver is loaded. Each call that would wake a sleeping board adds a byte to FAKE_NVML_WAKES.
 * With -DOLD_DRIVER the energy counter, field values and throttle reasons do not exist.
 */
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>
#include <unistd.h>

enum { SUCCESS = 0, NOT_SUPPORTED = 3, NO_PERMISSION = 4, NOT_FOUND = 6, INSUFFICIENT_SIZE = 7, DRIVER_NOT_LOADED = 9, GPU_IS_LOST = 15 };

typedef struct {
    unsigned int field_id;
    unsigned int scope_id;
    long long timestamp_us;
    long long latency_us;
    int value_type;
    int status;
    union {
        double d;
        unsigned int ui;
        unsigned long long ull;
    } value;
} field_value;

static long long state(const char *key, long long otherwise)
{
    const char *path = getenv("FAKE_NVML_STATE");
    FILE *file = path ? fopen(path, "r") : NULL;
    char name[64];
    long long value, found = otherwise;
    if (!file)
        return strcmp(key, "init") == 0 ? DRIVER_NOT_LOADED : otherwise;
    while (fscanf(file, "%63s %lld", name, &value) == 2)
        if (strcmp(name, key) == 0)
            found = value;
    fclose(file);
    return found;
}

/* A board's own value, or that of all. */
static long long of_board(const char *key, void *device)
{
    char own[64];
    snprintf(own, sizeof own, "%s_%zu", key, (size_t)device - 1);
    return state(own, state(key, 0));
}

/* What the board draws now, where the file says that it is alive. */
static long long live_mw(void *device) { return of_board("live_mw", device); }

static void wake(void)
{
    const char *path = getenv("FAKE_NVML_WAKES");
    FILE *file = path ? fopen(path, "a") : NULL;
    if (file) {
        fputc('.', file);
        fclose(file);
    }
}

int nvmlInit_v2(void)
{
    wake();
    sleep((unsigned int)state("init_hangs_s", 0));
    return (int)state("init", SUCCESS);
}

int nvmlInitWithFlags(unsigned int flags) { (void)flags; return nvmlInit_v2(); }
int nvmlShutdown(void) { return SUCCESS; }
const char *nvmlErrorString(int code) { (void)code; return "fake error"; }

int nvmlDeviceGetCount_v2(unsigned int *count) { *count = (unsigned int)state("count", 1); return SUCCESS; }

int nvmlDeviceGetHandleByIndex_v2(unsigned int index, void **device)
{
    *device = (void *)(size_t)(index + 1);
    return state("lost_board", -1) == (long long)index ? GPU_IS_LOST : SUCCESS;
}

int nvmlDeviceGetName(void *device, char *name, unsigned int length)
{
    (void)device;
    snprintf(name, length, state("orin", 0) ? "Orin (nvgpu)" : "Fake RTX 4090");
    return SUCCESS;
}

int nvmlDeviceGetUUID(void *device, char *uuid, unsigned int length)
{
    snprintf(uuid, length, "GPU-fake-%zu", (size_t)device - 1);
    return SUCCESS;
}

enum { FIRST_INSTANCE = 1000 };

typedef struct {
    char legacy_bus_id[16];
    unsigned int domain, bus, device, device_id, subsystem_id;
    char bus_id[32];
} pci_info;

int nvmlDeviceGetPciInfo_v3(void *device, pci_info *info)
{
    memset(info, 0, sizeof *info);
    snprintf(info->bus_id, sizeof info->bus_id, "00000000:%02zX:00.0", (size_t)device);
    return SUCCESS;
}

#ifndef OLD_DRIVER
int nvmlDeviceGetMigMode(void *device, unsigned int *current, unsigned int *pending)
{
    (void)device;
    *current = *pending = state("mig", -1) == 1;
    return state("mig", -1) < 0 ? NOT_SUPPORTED : SUCCESS;
}

int nvmlDeviceGetMaxMigDeviceCount(void *device, unsigned int *count)
{
    (void)device;
    *count = 7;
    return SUCCESS;
}

int nvmlDeviceGetMigDeviceHandleByIndex(void *device, unsigned int index, void **instance)
{
    *instance = (void *)((size_t)device * FIRST_INSTANCE + index);
    return index < state("instances", 0) ? SUCCESS : NOT_FOUND;
}
#endif

typedef struct {
    unsigned int pid;
    unsigned long long memory;
    unsigned int gpu_instance, compute_instance;
} process_info;

/* An instance's handle stands for itself; a board that is divided tells root alone who is on it. */
static int processes(const char *key, void *device, unsigned int *count, process_info *infos)
{
    size_t handle = (size_t)device;
    char own[64];
    snprintf(own, sizeof own, "%s_in_%zu", key, handle % FIRST_INSTANCE);
    if (handle < FIRST_INSTANCE && state("mig", -1) == 1)
        return NO_PERMISSION;
    long long pid = handle < FIRST_INSTANCE ? of_board(key, device) : state(own, 0);
    unsigned int capacity = *count;
    *count = pid ? 1 : 0;
    if (*count > capacity)
        return INSUFFICIENT_SIZE;
    if (pid) {
        memset(infos, 0, sizeof *infos);
        infos->pid = (unsigned int)pid;
    }
    return SUCCESS;
}

int nvmlDeviceGetComputeRunningProcesses_v3(void *device, unsigned int *count, process_info *infos)
{
    return processes("computing", device, count, infos);
}

int nvmlDeviceGetGraphicsRunningProcesses_v3(void *device, unsigned int *count, process_info *infos)
{
    return processes("drawing", device, count, infos);
}

int nvmlDeviceGetPowerUsage(void *device, unsigned int *milliwatts)
{
    wake();
    sleep((unsigned int)state("read_hangs_s", 0));
    *milliwatts = (unsigned int)state("power_mw", live_mw(device));
    return (int)state("power_status", SUCCESS);
}

#ifndef OLD_DRIVER
/* What it has drawn since the machine's start. */
static unsigned long long live_mj(void *device)
{
    struct timespec now;
    clock_gettime(CLOCK_MONOTONIC, &now);
    return (unsigned long long)(((double)now.tv_sec + 1e-9 * (double)now.tv_nsec) * (double)live_mw(device));
}

int nvmlDeviceGetTotalEnergyConsumption(void *device, unsigned long long *millijoules)
{
    wake();
    *millijoules = live_mw(device) ? live_mj(device) : (unsigned long long)state("energy_mj", 0);
    return (int)state("energy_status", SUCCESS);
}

int nvmlDeviceGetFieldValues(void *device, int count, field_value *values)
{
    (void)device;
    for (int i = 0; i < count; i++) {
        values[i].status = values[i].field_id == 186 ? (int)state("field_status", SUCCESS) : NOT_SUPPORTED;
        values[i].value.ui = (unsigned int)state("field_mw", 0);
    }
    return SUCCESS;
}

int nvmlDeviceGetCurrentClocksThrottleReasons(void *device, unsigned long long *reasons)
{
    (void)device;
    *reasons = (unsigned long long)state("throttle", 0);
    return SUCCESS;
}
#endif
