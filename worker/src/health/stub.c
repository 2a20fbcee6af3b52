// A driver and an NVML of one GPU, for testing the health checks without one. Loaded as libcuda.so.1
// and as libnvidia-ml.so.1. RINGMASTER_TEST_GPU says what is wrong with it.

#include <stdlib.h>
#include <string.h>

enum { SUCCESS = 0, NOT_SUPPORTED = 3, NOT_FOUND = 6, TIMEOUT = 10 };

static int is(const char* what) {
    const char* wrong = getenv("RINGMASTER_TEST_GPU");
    return wrong != NULL && strcmp(wrong, what) == 0;
}

// The driver.

int cuInit(unsigned flags) { return flags; }
int cuDeviceGet(int* device, int ordinal) { return *device = ordinal; }
int cuDevicePrimaryCtxRetain(void** context, int device) {
    *context = (void*)0x1000;
    return device;
}
int cuCtxSetCurrent(void* context) { return context == NULL; }
int cuDeviceGetPCIBusId(char* text, int room, int device) {
    strncpy(text, "0000:17:00.0", room);
    return device;
}
int cuMemGetInfo_v2(size_t* free, size_t* total) {
    *total = (size_t)80 << 30;
    *free = is("full") ? (size_t)100 << 20 : *total;
    return 0;
}

// NVML.

int nvmlInit_v2(void) { return SUCCESS; }
int nvmlDeviceGetHandleByPciBusId_v2(const char* pci, void** device) {
    *device = (void*)0x2000;
    return strcmp(pci, "0000:17:00.0") == 0 ? SUCCESS : NOT_FOUND;
}
int nvmlDeviceGetUUID(void* device, char* text, unsigned room) {
    strncpy(text, "GPU-1234", room);
    return device == (void*)0x2000 ? SUCCESS : NOT_FOUND;
}
int nvmlDeviceGetTotalEccErrors(void* device, int type, int counter, unsigned long long* count) {
    if (is("plain")) return NOT_SUPPORTED;
    // Corrected ones, and those of times past, are no reason to refuse a GPU.
    *count = type == 1 && counter == 0 ? is("ecc") * 3 : 1000;
    return SUCCESS;
}
int nvmlDeviceGetRetiredPagesPendingStatus(void* device, int* pending) {
    *pending = is("pages");
    return is("plain") ? NOT_SUPPORTED : SUCCESS;
}
int nvmlDeviceGetRemappedRows(void* device, unsigned* corrected, unsigned* uncorrected,
                              unsigned* pending, unsigned* failed) {
    *corrected = *uncorrected = 5;
    *pending = is("rows");
    *failed = is("remap");
    return is("plain") ? NOT_SUPPORTED : SUCCESS;
}

typedef struct {
    void* device;
    unsigned long long kind, data;
    unsigned gpu_instance, compute_instance;
} Event;

static int told;

int nvmlEventSetCreate(void** set) {
    *set = (void*)0x3000;
    return SUCCESS;
}
int nvmlEventSetFree(void* set) { return set == NULL; }
int nvmlDeviceRegisterEvents(void* device, unsigned long long kinds, void* set) {
    if (is("plain")) return NOT_SUPPORTED;
    return kinds == 8 && set == (void*)0x3000 ? SUCCESS : NOT_FOUND;
}
int nvmlEventSetWait_v2(void* set, Event* event, unsigned milliseconds) {
    if (!is("xid") || told++) return TIMEOUT;
    event->kind = 8;
    event->data = 79;
    return milliseconds;
}
