// A device and an NCCL of one rank, for testing the thread that drives them without a GPU. Loaded as
// libcuda.so.1 and as libnccl.so.2. The first byte of the communicator's id says what goes wrong.

#include <stdatomic.h>
#include <stddef.h>
#include <stdio.h>
#include <unistd.h>

enum { FINE, ABSENT_PEERS, STUCK, REMOTE_ERROR, UNREADY, HANGING_ABORT };
enum { SUCCESS = 0, INVALID_ARGUMENT = 4, REMOTE = 6, IN_PROGRESS = 7, NOT_READY = 600 };

static atomic_int mode, busy_polls, queued, aborted;

// The driver.

int cuInit(unsigned flags) { return flags; }
int cuDeviceGet(int* device, int ordinal) { return *device = ordinal; }
int cuDevicePrimaryCtxRetain(void** context, int device) {
    *context = (void*)0x1000;
    return device;
}
int cuCtxSetCurrent(void* context) { return context == NULL; }
int cuStreamCreate(void** stream, unsigned flags) {
    *stream = (void*)0x2000;
    return flags != 1;
}
int cuStreamDestroy_v2(void* stream) { return stream == NULL; }
int cuStreamWaitEvent(void* stream, void* event, unsigned flags) {
    return stream == NULL || event == NULL || flags;
}
int cuStreamSynchronize(void* stream) { return stream == NULL; }
int cuEventCreate(void** event, unsigned flags) {
    *event = (void*)0x3000;
    return flags != 2;
}
int cuEventRecord(void* event, void* stream) { return event == NULL || stream == NULL; }
int cuEventDestroy_v2(void* event) { return event == NULL; }
// An abort ends the kernels, so what waits for them goes on as if they had succeeded.
int cuEventQuery(void* event) {
    int stuck = queued && mode != FINE && !aborted;
    return event == NULL ? 1 : stuck ? NOT_READY : 0;
}

// NCCL.

typedef struct {
    char internal[128];
} Id;

typedef struct {
    size_t size;
    unsigned magic, version;
    int blocking;
} Config;

int ncclGetVersion(int* version) {
    *version = 22809;
    return SUCCESS;
}
int ncclGetUniqueId(Id* id) {
    id->internal[0] = FINE;
    return SUCCESS;
}
const char* ncclGetLastError(void* comm) { return comm ? "words of the stub" : NULL; }
int ncclCommInitRankConfig(void** comm, int ranks, Id id, int rank, Config* config) {
    if (config->size != 80 || config->magic != 0xcafebeefu || config->blocking != 0)
        return INVALID_ARGUMENT;
    mode = id.internal[0];
    *comm = (void*)0x4000;
    busy_polls = 5;
    return rank < ranks ? IN_PROGRESS : INVALID_ARGUMENT;
}
int ncclCommGetAsyncError(void* comm, int* state) {
    int absent = mode == ABSENT_PEERS || (mode == UNREADY && queued);
    if (absent || busy_polls > 0) {
        --busy_polls;
        *state = IN_PROGRESS;
    } else {
        *state = mode == REMOTE_ERROR && queued ? REMOTE : SUCCESS;
    }
    return comm == NULL;
}
int ncclAllReduce(const void* from, void* to, size_t count, int type, int op, void* comm,
                  void* stream) {
    // Two of anything but in place, or a call before the last was done, is a mistake of the caller.
    if (from != to || count != 8 || type != 7 || op != 0 || !comm || !stream || busy_polls > 0)
        return INVALID_ARGUMENT;
    ++queued;
    busy_polls = 3;
    return IN_PROGRESS;
}
int ncclCommFinalize(void* comm) {
    busy_polls = 2;
    return comm ? IN_PROGRESS : INVALID_ARGUMENT;
}
int ncclCommDestroy(void* comm) {
    fprintf(stderr, busy_polls > 0 ? "stub: destroyed too early\n" : "stub: destroyed\n");
    return comm == NULL;
}
int ncclCommAbort(void* comm) {
    fprintf(stderr, "stub: aborted\n");
    while (mode == HANGING_ABORT) pause();
    aborted = 1;
    return comm == NULL;
}
int ncclGroupStart(void) { return SUCCESS; }
int ncclGroupEnd(void) { return SUCCESS; }
int ncclReduce(void) { return INVALID_ARGUMENT; }
int ncclAllGather(void) { return INVALID_ARGUMENT; }
int ncclReduceScatter(void) { return INVALID_ARGUMENT; }
int ncclBroadcast(void) { return INVALID_ARGUMENT; }
int ncclSend(void) { return INVALID_ARGUMENT; }
int ncclRecv(void) { return INVALID_ARGUMENT; }
