/* A library of our own in the place of NVIDIA's libnvidia-ml.so.1, for tests.
 *
 * It has the functions that nvidia-ml-py calls for vllamad/devices/nvml.py, by the names it looks up, with the layouts
 * that it passes (test_devices_nvml.py compares the sizes). Nothing of it is NVIDIA's: the declarations say anew what
 * the Python binding shows.
 *
 * What the cards are like stands in a text file, named by FAKE_NVML and read at every call; without the file, no
 * driver is loaded. A line is a word and its values:
 *
 *   generation N                  another number: the driver was loaded anew, and whoever used it must start again
 *   driver VERSION                of the driver as a whole
 *   cuda NUMBER                   the newest CUDA that it runs: 12080 is 12.8
 *   error FUNCTION CODE [UUID]    what a function returns, of one card or of all
 *   delay FUNCTION MILLISECONDS   how long it takes
 *   hang FUNCTION                 it does not return while this line is there
 *   gpu UUID                      a card; the lines below are of this one
 *   name TEXT
 *   lost                          it fell off the bus
 *   memory TOTAL RESERVED FREE
 *   process PID BYTES             -1 bytes: the driver does not tell how many
 *   graphics PID BYTES
 *   temperature CELSIUS
 *   utilisation PERCENT
 *   capability MAJOR MINOR
 *   mig 0|1
 *   ecc COUNT                     uncorrectable errors
 *   remap_failure 0|1
 *   recovery ACTION
 *   nvlink UUID
 *   xid NUMBER SERIAL             an event; told once, to whoever registered before it came
 *
 * What a card has no line for, it does not support.
 */

#define _GNU_SOURCE
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

enum {
    OK = 0,
    UNINITIALIZED = 1,
    INVALID_ARGUMENT = 2,
    NOT_SUPPORTED = 3,
    NOT_FOUND = 6,
    INSUFFICIENT_SIZE = 7,
    DRIVER_NOT_LOADED = 9,
    TIMEOUT = 10,
    GPU_IS_LOST = 15,
    VERSION_MISMATCH = 25,
};

enum { MOST_CARDS = 16, MOST_ROWS = 64, TEXT = 96, XID_EVENT = 8, RECOVERY_FIELD = 230, NVLINK = 2 };

typedef unsigned long long u64;

struct memory { u64 total, free, used; };
struct memory_v2 { unsigned version; u64 total, reserved, free, used; };
struct process { unsigned pid; u64 used; unsigned gpu_instance, compute_instance; };
struct rates { unsigned gpu, memory; };
struct event { void *device; u64 type, data; unsigned gpu_instance, compute_instance; };
struct field {
    unsigned id, scope;
    long long timestamp, latency;
    unsigned type, result;
    union { double d; unsigned u; u64 ull; } value;
};

struct card {
    char uuid[TEXT], name[TEXT], peers[MOST_CARDS][TEXT];
    int is_lost, has_memory, has_temperature, has_rate, has_capability, has_mig, has_ecc, has_rows, has_recovery;
    u64 total, reserved, free, ecc;
    unsigned temperature, rate, mig, remap_failure, recovery;
    int major, minor, processes, graphics, peer_count, xids;
    struct process process[2][MOST_ROWS];
    u64 xid[MOST_ROWS], serial[MOST_ROWS];
};

struct script {
    int cards, cuda;
    long generation;
    char driver[TEXT];
    struct card card[MOST_CARDS];
};

/* A handle is the place of an identifier in here: it stays with its card, wherever that is listed. */
static char known[MOST_CARDS][TEXT];
static int starts;
/* What the file says, as the call that runs in this thread has read it. */
static __thread struct script script;
static long generation;

struct set { u64 seen; char cards[MOST_CARDS][TEXT]; };

static void rest(long milliseconds) {
    struct timespec span = {milliseconds / 1000, milliseconds % 1000 * 1000000};
    nanosleep(&span, NULL);
}

static int text(char *to, unsigned size, const char *from) {
    unsigned length = (unsigned)strlen(from);
    if (size <= length) return INSUFFICIENT_SIZE;
    memcpy(to, from, length + 1);
    return OK;
}

static void read_card_line(struct card *card, const char *word, const char *values) {
    int last = card->peer_count;
    long long used = 0;
    unsigned pid = 0;
    if (!strcmp(word, "name")) text(card->name, TEXT, values);
    else if (!strcmp(word, "lost")) card->is_lost = 1;
    else if (!strcmp(word, "memory"))
        card->has_memory = sscanf(values, "%llu %llu %llu", &card->total, &card->reserved, &card->free) == 3;
    else if (!strcmp(word, "temperature")) card->has_temperature = sscanf(values, "%u", &card->temperature) == 1;
    else if (!strcmp(word, "utilisation")) card->has_rate = sscanf(values, "%u", &card->rate) == 1;
    else if (!strcmp(word, "capability"))
        card->has_capability = sscanf(values, "%d %d", &card->major, &card->minor) == 2;
    else if (!strcmp(word, "mig")) card->has_mig = sscanf(values, "%u", &card->mig) == 1;
    else if (!strcmp(word, "ecc")) card->has_ecc = sscanf(values, "%llu", &card->ecc) == 1;
    else if (!strcmp(word, "remap_failure")) card->has_rows = sscanf(values, "%u", &card->remap_failure) == 1;
    else if (!strcmp(word, "recovery")) card->has_recovery = sscanf(values, "%u", &card->recovery) == 1;
    else if (!strcmp(word, "nvlink") && last < MOST_CARDS) {
        text(card->peers[last], TEXT, values);
        card->peer_count++;
    } else if (!strcmp(word, "xid") && card->xids < MOST_ROWS) {
        if (sscanf(values, "%llu %llu", &card->xid[card->xids], &card->serial[card->xids]) == 2) card->xids++;
    } else if (!strcmp(word, "process") || !strcmp(word, "graphics")) {
        int kind = *word == 'g';
        int *count = kind ? &card->graphics : &card->processes;
        if (*count < MOST_ROWS && sscanf(values, "%u %lld", &pid, &used) == 2)
            card->process[kind][(*count)++] = (struct process){pid, (u64)used, -1, -1};
    }
}

/* Read the file; what stands there about `function` goes to `code`, `delay` and `hangs`. */
static int read_script(const char *path, const char *function, const char *uuid, int *code, long *delay, int *hangs) {
    char line[512], word[64], values[448], name[64], whose[TEXT];
    FILE *file = path ? fopen(path, "re") : NULL;
    memset(&script, 0, sizeof script);
    *code = OK, *delay = 0, *hangs = 0;
    if (!file) return DRIVER_NOT_LOADED;
    while (fgets(line, sizeof line, file)) {
        long number = 0;
        line[strcspn(line, "\n")] = *values = *whose = *name = 0;
        if (sscanf(line, "%63s %447[^\n]", word, values) < 1) continue;
        if (!strcmp(word, "generation")) script.generation = atol(values);
        else if (!strcmp(word, "driver")) text(script.driver, TEXT, values);
        else if (!strcmp(word, "cuda")) script.cuda = atoi(values);
        else if (!strcmp(word, "error")) {
            if (sscanf(values, "%63s %ld %95s", name, &number, whose) >= 2 && !strcmp(name, function) &&
                (!*whose || (uuid && !strcmp(whose, uuid))))
                *code = (int)number;
        } else if (!strcmp(word, "delay")) {
            if (sscanf(values, "%63s %ld", name, &number) == 2 && !strcmp(name, function)) *delay = number;
        } else if (!strcmp(word, "hang")) *hangs |= !strcmp(values, function);
        else if (!strcmp(word, "gpu") && script.cards < MOST_CARDS)
            text(script.card[script.cards++].uuid, TEXT, values);
        else if (script.cards) read_card_line(&script.card[script.cards - 1], word, values);
    }
    fclose(file);
    return OK;
}

/* What every call begins with. `needs_start` is false for those that start and end the driver. */
static int begin(const char *function, const char *uuid, int needs_start) {
    /* The path is taken once: a call that hangs must not follow the process to another file. */
    char *path = getenv("FAKE_NVML") ? strdup(getenv("FAKE_NVML")) : NULL;
    int code, hangs, result;
    long delay, waited = 0;
    for (;;) {
        result = read_script(path, function, uuid, &code, &delay, &hangs);
        if (result != OK || (!hangs && waited >= delay)) break;
        rest(2);
        waited += 2;
    }
    free(path);
    if (result != OK) return result;
    if (code != OK) return code;
    return needs_start && (!starts || script.generation != generation) ? UNINITIALIZED : OK;
}

static const char *uuid_of(const void *handle) {
    for (int i = 0; i < MOST_CARDS; i++)
        if (handle == known[i] && *known[i]) return known[i];
    return NULL;
}

static int begin_card(const char *function, const void *handle, struct card **card) {
    const char *uuid = uuid_of(handle);
    int result = begin(function, uuid, 1);
    if (result != OK) return result;
    if (!uuid) return INVALID_ARGUMENT;
    for (int i = 0; i < script.cards; i++) {
        *card = &script.card[i];
        if (!strcmp((*card)->uuid, uuid)) return (*card)->is_lost ? GPU_IS_LOST : OK;
    }
    return GPU_IS_LOST;
}

#define CARD(handle)                                    \
    struct card *card = NULL;                           \
    int result = begin_card(__func__, (handle), &card); \
    if (result != OK) return result

/* --- the driver as a whole ---------------------------------------------------------------------------------------- */

int nvmlInitWithFlags(unsigned flags) {
    int result = begin(__func__, NULL, 0);
    (void)flags;
    if (result != OK) return result;
    if (!starts++) generation = script.generation;
    return OK;
}

int nvmlInit_v2(void) { return nvmlInitWithFlags(0); }

int nvmlShutdown(void) {
    int result = begin(__func__, NULL, 0);
    if (starts) starts--;
    return result;
}

const char *nvmlErrorString(int code) {
    (void)code;
    return "an error of the fake";
}

int nvmlSystemGetDriverVersion(char *version, unsigned size) {
    int result = begin(__func__, NULL, 1);
    return result == OK ? text(version, size, script.driver) : result;
}

int nvmlSystemGetCudaDriverVersion_v2(int *version) {
    int result = begin(__func__, NULL, 1);
    *version = script.cuda;
    return result;
}

int nvmlDeviceGetCount_v2(unsigned *count) {
    int result = begin(__func__, NULL, 1);
    *count = (unsigned)script.cards;
    return result;
}

int nvmlDeviceGetHandleByIndex_v2(unsigned index, void **handle) {
    int result = begin(__func__, NULL, 1);
    if (result != OK) return result;
    if (index >= (unsigned)script.cards) return INVALID_ARGUMENT;
    /* Once more, for an error of this card. */
    if ((result = begin(__func__, script.card[index].uuid, 1)) != OK) return result;
    if (script.card[index].is_lost) return GPU_IS_LOST;
    for (int i = 0; i < MOST_CARDS; i++) {
        if (*known[i] && strcmp(known[i], script.card[index].uuid)) continue;
        memcpy(known[i], script.card[index].uuid, TEXT);
        *handle = known[i];
        return OK;
    }
    return NOT_FOUND;
}

/* --- one card ----------------------------------------------------------------------------------------------------- */

int nvmlDeviceGetUUID(void *handle, char *uuid, unsigned size) {
    CARD(handle);
    return text(uuid, size, card->uuid);
}

int nvmlDeviceGetName(void *handle, char *name, unsigned size) {
    CARD(handle);
    return text(name, size, card->name);
}

int nvmlDeviceGetMemoryInfo(void *handle, struct memory *memory) {
    CARD(handle);
    if (!card->has_memory) return NOT_SUPPORTED;
    *memory = (struct memory){card->total, card->free, card->total - card->free};
    return OK;
}

int nvmlDeviceGetMemoryInfo_v2(void *handle, struct memory_v2 *memory) {
    CARD(handle);
    if (memory->version != (sizeof *memory | 2u << 24)) return VERSION_MISMATCH;
    if (!card->has_memory) return NOT_SUPPORTED;
    memory->total = card->total, memory->reserved = card->reserved, memory->free = card->free;
    memory->used = card->total - card->reserved - card->free;
    return OK;
}

static int list(const struct process *from, unsigned there, unsigned *count, struct process *to) {
    unsigned room = *count;
    *count = there;
    if (!there) return OK;
    if (room < there || !to) return INSUFFICIENT_SIZE;
    memcpy(to, from, there * sizeof *to);
    return OK;
}

int nvmlDeviceGetComputeRunningProcesses_v3(void *handle, unsigned *count, struct process *processes) {
    CARD(handle);
    return list(card->process[0], (unsigned)card->processes, count, processes);
}

int nvmlDeviceGetGraphicsRunningProcesses_v3(void *handle, unsigned *count, struct process *processes) {
    CARD(handle);
    return list(card->process[1], (unsigned)card->graphics, count, processes);
}

int nvmlDeviceGetTemperature(void *handle, unsigned sensor, unsigned *celsius) {
    CARD(handle);
    *celsius = card->temperature;
    return card->has_temperature && sensor == 0 ? OK : NOT_SUPPORTED;
}

int nvmlDeviceGetUtilizationRates(void *handle, struct rates *rates) {
    CARD(handle);
    *rates = (struct rates){card->rate, 0};
    return card->has_rate ? OK : NOT_SUPPORTED;
}

int nvmlDeviceGetCudaComputeCapability(void *handle, int *major, int *minor) {
    CARD(handle);
    *major = card->major, *minor = card->minor;
    return card->has_capability ? OK : NOT_SUPPORTED;
}

int nvmlDeviceGetMigMode(void *handle, unsigned *current, unsigned *pending) {
    CARD(handle);
    *current = *pending = card->mig;
    return card->has_mig ? OK : NOT_SUPPORTED;
}

int nvmlDeviceGetTotalEccErrors(void *handle, unsigned kind, unsigned since, u64 *count) {
    CARD(handle);
    /* 1: uncorrectable; 0: since the driver was loaded. */
    *count = kind == 1 && since == 0 ? card->ecc : 0;
    return card->has_ecc ? OK : NOT_SUPPORTED;
}

int nvmlDeviceGetRemappedRows(void *handle, unsigned *correctable, unsigned *uncorrectable, unsigned *is_pending,
                              unsigned *has_failed) {
    CARD(handle);
    *correctable = *uncorrectable = *is_pending = 0;
    *has_failed = card->remap_failure;
    return card->has_rows ? OK : NOT_SUPPORTED;
}

int nvmlDeviceGetFieldValues(void *handle, int count, struct field *fields) {
    CARD(handle);
    for (int i = 0; i < count; i++) {
        int is_told = fields[i].id == RECOVERY_FIELD && card->has_recovery;
        fields[i].result = is_told ? OK : NOT_SUPPORTED;
        fields[i].type = 1;
        fields[i].value.ull = 0;
        fields[i].value.u = card->recovery;
    }
    return OK;
}

int nvmlDeviceGetP2PStatus(void *handle, void *other, unsigned what, unsigned *status) {
    CARD(handle);
    const char *uuid = uuid_of(other);
    *status = 5;
    for (int i = 0; uuid && what == NVLINK && i < card->peer_count; i++)
        if (!strcmp(card->peers[i], uuid)) *status = 0;
    return uuid ? OK : INVALID_ARGUMENT;
}

/* --- events ------------------------------------------------------------------------------------------------------- */

static u64 newest(void) {
    u64 serial = 0;
    for (int i = 0; i < script.cards; i++)
        for (int j = 0; j < script.card[i].xids; j++)
            if (script.card[i].serial[j] > serial) serial = script.card[i].serial[j];
    return serial;
}

int nvmlEventSetCreate(void **handle) {
    int result = begin(__func__, NULL, 1);
    struct set *set = result == OK ? calloc(1, sizeof *set) : NULL;
    if (set) set->seen = newest(), *handle = set;
    return result;
}

int nvmlDeviceRegisterEvents(void *handle, u64 kinds, void *events) {
    struct set *set = events;
    CARD(handle);
    if (kinds != XID_EVENT) return NOT_SUPPORTED;
    for (int i = 0; i < MOST_CARDS; i++) {
        if (*set->cards[i] && strcmp(set->cards[i], card->uuid)) continue;
        memcpy(set->cards[i], card->uuid, TEXT);
        return OK;
    }
    return NOT_FOUND;
}

int nvmlEventSetWait_v2(void *events, struct event *event, unsigned milliseconds) {
    struct set *set = events;
    int result = begin(__func__, NULL, 1);
    u64 next = 0;
    memset(event, 0, sizeof *event);
    if (result != OK) return result;
    for (int i = 0; i < script.cards; i++)
        for (int j = 0; j < script.card[i].xids; j++)
            for (int k = 0; k < MOST_CARDS; k++)
                if (script.card[i].serial[j] > set->seen && !strcmp(set->cards[k], script.card[i].uuid) &&
                    (!next || script.card[i].serial[j] < next)) {
                    next = script.card[i].serial[j];
                    event->type = XID_EVENT, event->data = script.card[i].xid[j];
                    for (int h = 0; h < MOST_CARDS; h++)
                        if (!strcmp(known[h], script.card[i].uuid)) event->device = known[h];
                }
    if (next) {
        set->seen = next;
        return OK;
    }
    rest((long)milliseconds);
    return TIMEOUT;
}

/* --- for the tests of this library -------------------------------------------------------------------------------- */

/* As if just loaded: for the next test in this process. */
void vllama_fake_reset(void) {
    memset(known, 0, sizeof known);
    starts = 0;
}

unsigned vllama_fake_size(const char *what) {
    if (!strcmp(what, "c_nvmlMemory_t")) return sizeof(struct memory);
    if (!strcmp(what, "c_nvmlMemory_v2_t")) return sizeof(struct memory_v2);
    if (!strcmp(what, "c_nvmlProcessInfo_v2_t")) return sizeof(struct process);
    if (!strcmp(what, "c_nvmlUtilization_t")) return sizeof(struct rates);
    if (!strcmp(what, "c_nvmlEventData_t")) return sizeof(struct event);
    if (!strcmp(what, "c_nvmlFieldValue_t")) return sizeof(struct field);
    return 0;
}
