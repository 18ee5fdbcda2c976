/* A made-up libnvidia-ml.so.1 with one GPU, for scripts/energy_peers.py.
 *
 * The energy counter (mJ) and the power (mW) are two 64-bit numbers in the file that FAKE_NVML names, which a writer
 * process renews as the hardware would. Signatures, constants and structures are those of NVIDIA's documentation of
 * NVML; what no tool of the experiment asks for is not here, and what a GPU may refuse is refused.
 */
#include <fcntl.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <unistd.h>

enum { SUCCESS = 0, NOT_SUPPORTED = 3, UNKNOWN = 999 };
enum { TEMPERATURE = 61, AMPERE = 7, POWER_INSTANT = 186, VALUE_UNSIGNED_INT = 1 };

typedef int Return;
typedef void *Device;

typedef struct {
    unsigned long long total, free, used;
} Memory;

typedef struct {
    unsigned int field, scope;
    long long timestamp, latency_us;
    int type;
    Return result;
    union {
        unsigned int u32;
        unsigned long long u64;
    } value;
} FieldValue;

typedef struct {
    unsigned int gpu, memory;
} Utilization;

static volatile uint64_t *numbers;

Return nvmlInitWithFlags(unsigned int flags)
{
    (void)flags;
    if (numbers)
        return SUCCESS;
    const char *path = getenv("FAKE_NVML");
    int file = path ? open(path, O_RDONLY) : -1;
    if (file < 0)
        return UNKNOWN;
    void *place = mmap(NULL, 2 * sizeof(uint64_t), PROT_READ, MAP_SHARED, file, 0);
    close(file);
    if (place == MAP_FAILED)
        return UNKNOWN;
    numbers = place;
    return SUCCESS;
}

Return nvmlInit_v2(void) { return nvmlInitWithFlags(0); }
Return nvmlShutdown(void) { return SUCCESS; }
const char *nvmlErrorString(Return code) { return code == NOT_SUPPORTED ? "Not Supported" : "made up"; }

Return nvmlDeviceGetCount_v2(unsigned int *count)
{
    *count = 1;
    return SUCCESS;
}

Return nvmlDeviceGetHandleByIndex_v2(unsigned int index, Device *device)
{
    *device = (Device)(uintptr_t)(index + 1);
    return index ? UNKNOWN : SUCCESS;
}

Return nvmlDeviceGetName(Device device, char *name, unsigned int length)
{
    (void)device;
    snprintf(name, length, "Made-up GPU");
    return SUCCESS;
}

Return nvmlDeviceGetUUID(Device device, char *name, unsigned int length)
{
    (void)device;
    snprintf(name, length, "GPU-00000000-0000-0000-0000-000000000000");
    return SUCCESS;
}

Return nvmlDeviceGetArchitecture(Device device, unsigned int *architecture)
{
    (void)device;
    *architecture = AMPERE;
    return SUCCESS;
}

Return nvmlDeviceGetTotalEnergyConsumption(Device device, unsigned long long *mj)
{
    (void)device;
    *mj = numbers[0];
    return SUCCESS;
}

Return nvmlDeviceGetPowerUsage(Device device, unsigned int *mw)
{
    (void)device;
    *mw = (unsigned int)numbers[1];
    return SUCCESS;
}

Return nvmlDeviceGetFieldValues(Device device, int count, FieldValue *fields)
{
    (void)device;
    for (int at = 0; at < count; at++) {
        int known = fields[at].field == POWER_INSTANT && fields[at].scope == 0;
        fields[at].result = known ? SUCCESS : NOT_SUPPORTED;
        fields[at].type = VALUE_UNSIGNED_INT;
        fields[at].value.u64 = 0;
        if (known)
            fields[at].value.u32 = (unsigned int)numbers[1];
    }
    return SUCCESS;
}

Return nvmlDeviceGetTemperature(Device device, int sensor, unsigned int *c)
{
    (void)device, (void)sensor;
    *c = TEMPERATURE;
    return SUCCESS;
}

Return nvmlDeviceGetMemoryInfo(Device device, Memory *memory)
{
    (void)device;
    memory->total = 8ULL << 30, memory->used = 1ULL << 30, memory->free = 7ULL << 30;
    return SUCCESS;
}

Return nvmlDeviceGetCurrentClocksEventReasons(Device device, unsigned long long *reasons)
{
    (void)device;
    *reasons = 0;
    return SUCCESS;
}

Return nvmlDeviceGetEnforcedPowerLimit(Device device, unsigned int *mw)
{
    (void)device;
    *mw = 200000;
    return SUCCESS;
}

Return nvmlDeviceGetUtilizationRates(Device device, Utilization *rates)
{
    (void)device;
    rates->gpu = rates->memory = 50;
    return SUCCESS;
}

Return nvmlDeviceGetComputeMode(Device device, int *mode)
{
    (void)device;
    *mode = 0;
    return SUCCESS;
}

Return nvmlDeviceGetComputeRunningProcesses_v3(Device device, unsigned int *count, void *processes)
{
    (void)device, (void)processes;
    *count = 0;
    return SUCCESS;
}

Return nvmlDeviceGetGraphicsRunningProcesses_v3(Device device, unsigned int *count, void *processes)
{
    return nvmlDeviceGetComputeRunningProcesses_v3(device, count, processes);
}

Return nvmlDeviceGetC2cModeInfoV(Device device, void *mode)
{
    (void)device, (void)mode;
    return NOT_SUPPORTED;
}
