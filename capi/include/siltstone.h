/* Siltstone: a deduplicating, compressing block storage engine, for programs that embed it.
 *
 * A pool is a file or block device; volumes in it are thin virtual disks, read and written by byte range.
 *
 * Results: functions that return int return SILTSTONE_OK, or another code; siltstone_last_error() then says
 * in a sentence what was wrong. What such a function gives through a pointer to a pointer is NULL after a
 * failure.
 *
 * Threads: every call blocks until it is done, and all may be made from any threads at the same time, with
 * the same handles. Only closing and freeing need the handle for themselves: nobody may use it meanwhile or
 * later. A completed write is visible to every later read, through any handle; it is durable once a flush
 * that began later has completed, through any handle.
 *
 * Memory: what is given to a call is the caller's, and is not used after the call has returned. Text is
 * UTF-8 (paths are as the system has them) and ends with a zero byte.
 *
 * Structures begin with struct_bytes, which the caller sets to their sizeof; zero is the default of every
 * other field of options. Later versions may have fields more, at the end.
 *
 * Processes: one has a pool at a time, or several for reading only. After fork(), only exec() or _exit() in
 * the child: the pool's threads are not there.
 *
 * Output: the library prints nothing, and keeps no log. What an operator is to know is in the figures of
 * siltstone_stat(): how full the pool is, above all.
 *
 * Link with -lsiltstone, or ask pkg-config for "siltstone".
 */
#ifndef SILTSTONE_H
#define SILTSTONE_H

#include <stddef.h>
#include <stdint.h>

#ifdef __cplusplus
extern "C" {
#endif

/* Codes. Those up to SILTSTONE_DAMAGED are the exit statuses of the program siltstone, too. */
enum {
    SILTSTONE_OK = 0,
    SILTSTONE_OTHER = 1,         /* no memory or thread, or an invariant of the pool is broken */
    SILTSTONE_USAGE = 2,         /* NULL, text that is not UTF-8, a wrong struct_bytes, unknown flags */
    SILTSTONE_BAD_POOL = 3,      /* not a pool, or its metadata is damaged or incomplete */
    SILTSTONE_NEWER_VERSION = 4, /* the pool needs a newer library */
    SILTSTONE_IN_USE = 5,        /* another process has the pool */
    SILTSTONE_REFUSED = 6,       /* a name, size, range or option that cannot be, or not in this state */
    SILTSTONE_NO_SPACE = 7,      /* the pool is full, or what is under it */
    SILTSTONE_DEVICE = 8,        /* the device failed */
    SILTSTONE_DAMAGED = 9,       /* stored data is damaged; everything else can be read */
    SILTSTONE_FILE = 10,         /* the file or device cannot be opened */
    SILTSTONE_NOT_FOUND = 11,    /* no volume or snapshot has that name */
    SILTSTONE_EXISTS = 12,       /* a volume, snapshot, file or pool is there already */
    SILTSTONE_READ_ONLY = 13,    /* the pool is open for reading only, or the volume is a snapshot */
    SILTSTONE_STALE = 14,        /* the volume was deleted or rolled back: open it again */
    SILTSTONE_CLOSED = 15,       /* the pool was closed */
    SILTSTONE_PANIC = 16         /* the library met a broken invariant of its own; please report it */
};

/* The library's version, as in "0.1.0". */
const char *siltstone_version(void);

/* A few words for a code. */
const char *siltstone_code_text(int code);

/* What was wrong with the last call that failed in this thread; "" if none has. Valid until the next call
 * that fails in this thread. */
const char *siltstone_last_error(void);

/* Pools. */

typedef struct siltstone_pool siltstone_pool;

enum { SILTSTONE_CREATE_OVERWRITE = 1 /* even if the device holds something */ };

typedef struct siltstone_create_options {
    uint32_t struct_bytes;
    uint32_t flags;              /* SILTSTONE_CREATE_... */
    uint64_t size_bytes;         /* 0: all of a block device */
    uint64_t index_memory_bytes; /* for deduplication, at every opening; 0: 64 MiB */
} siltstone_create_options;

enum { SILTSTONE_OPEN_READ_ONLY = 1 /* recovers in memory and refuses every change */ };

typedef struct siltstone_open_options {
    uint32_t struct_bytes;
    uint32_t flags;             /* SILTSTONE_OPEN_... */
    uint64_t staging_bytes;     /* writes on their way to the device; 0: 32 MiB */
    uint64_t frame_cache_bytes; /* for reads; 0: 64 MiB */
    uint64_t page_cache_bytes;  /* for lookups; 0: 16 MiB */
} siltstone_open_options;

/* Makes a pool in a new file, or on a block device. It is not opened by that. */
int siltstone_create(const char *path, const siltstone_create_options *options);

/* Opens a pool, and recovers it if it was not closed. options may be NULL. */
int siltstone_open(const char *path, const siltstone_open_options *options, siltstone_pool **pool);

/* Finishes what was written, makes it durable and closes the pool. The handle is gone, whatever is
 * returned. Volumes that are still open fail from then on; the pool stays locked until the last of them is
 * closed. */
int siltstone_close(siltstone_pool *pool);

/* Makes the pool larger while it is in use; 0: as large as its device is by now. */
int siltstone_grow(siltstone_pool *pool, uint64_t size_bytes);

/* Volumes. */

typedef struct siltstone_volume siltstone_volume;

/* Creates an empty volume. size_bytes is a multiple of 512 and may exceed the pool. Durable at return. */
int siltstone_volume_create(siltstone_pool *pool, const char *name, uint64_t size_bytes);

/* Opens a volume, or, by a name like "disk@monday", a snapshot for reading. */
int siltstone_volume_open(siltstone_pool *pool, const char *name, siltstone_volume **volume);

/* Closes a volume; makes nothing durable that was not flushed. NULL is well. */
void siltstone_volume_close(siltstone_volume *volume);

uint64_t siltstone_volume_size_bytes(const siltstone_volume *volume);

/* Changes a volume's size. What lies past a smaller one is discarded. */
int siltstone_volume_resize(siltstone_pool *pool, const char *name, uint64_t size_bytes);

/* Deletes a volume, for good. It must have no snapshots. */
int siltstone_volume_delete(siltstone_pool *pool, const char *name);

/* Input and output: any byte ranges within the volume; those of whole 4 KiB blocks are faster. */

int siltstone_read(siltstone_volume *volume, uint64_t offset_bytes, void *out, size_t len_bytes);
int siltstone_write(siltstone_volume *volume, uint64_t offset_bytes, const void *data,
                    size_t len_bytes);

/* Makes durable what was written before, to any volume of the pool. */
int siltstone_flush(siltstone_volume *volume);

/* Gives back the whole 4 KiB blocks of a range, which read as zeros then; parts of blocks stay. */
int siltstone_discard(siltstone_volume *volume, uint64_t offset_bytes, uint64_t len_bytes);

/* Makes all of a range read as zeros. Whole blocks take no space then. */
int siltstone_write_zeroes(siltstone_volume *volume, uint64_t offset_bytes, uint64_t len_bytes);

/* Snapshots, with names like "disk@monday". */

/* Takes snapshots of one moment: all, or, if one cannot be taken, none. Durable at return. */
int siltstone_snapshot_create(siltstone_pool *pool, const char *const *names, size_t count);

int siltstone_snapshot_delete(siltstone_pool *pool, const char *name);

/* Creates a volume that begins with what the snapshot holds, and shares it. */
int siltstone_snapshot_clone(siltstone_pool *pool, const char *name, const char *volume_name);

/* Gives the snapshot's volume the contents that it had. Handles to the volume fail from then on. */
int siltstone_snapshot_roll_back(siltstone_pool *pool, const char *name);

/* Lists: volumes, or snapshots, of one moment, by name. */

typedef struct siltstone_list siltstone_list;

int siltstone_volume_list(siltstone_pool *pool, siltstone_list **list);
int siltstone_snapshot_list(siltstone_pool *pool, siltstone_list **list);
size_t siltstone_list_count(const siltstone_list *list);
/* Valid as long as the list; NULL behind its end. */
const char *siltstone_list_name(const siltstone_list *list, size_t index);
uint64_t siltstone_list_size_bytes(const siltstone_list *list, size_t index);
/* When a snapshot was taken, in seconds since 1970; 0 for volumes. */
uint64_t siltstone_list_created_unix_s(const siltstone_list *list, size_t index);
void siltstone_list_free(siltstone_list *list);

/* Figures. */

enum { SILTSTONE_STAT_QUICK = 1 /* without reading the whole map, which takes seconds for terabytes */ };

enum {
    SILTSTONE_FULLNESS_NORMAL = 0,
    SILTSTONE_FULLNESS_WARNING = 1,  /* 80 % used */
    SILTSTONE_FULLNESS_CRITICAL = 2, /* 95 % used */
    SILTSTONE_FULLNESS_FULL = 3      /* writes fail with SILTSTONE_NO_SPACE */
};

/* From stored_bytes to unusable_bytes the figures sum to size_bytes. */
typedef struct siltstone_stat_figures {
    uint32_t struct_bytes;
    uint32_t fullness; /* SILTSTONE_FULLNESS_... */
    uint64_t size_bytes;
    uint64_t stored_bytes;      /* what volumes and snapshots refer to */
    uint64_t garbage_bytes;     /* what collection can get back; the least, if quick */
    uint64_t overhead_bytes;    /* left empty in segments in use */
    uint64_t metadata_bytes;    /* map, log, checkpoints, tables */
    uint64_t reserved_bytes;    /* for trims, deletes and collection when the pool is full */
    uint64_t pending_bytes;     /* promised to writes under way */
    uint64_t free_bytes;        /* before any reduction */
    uint64_t unusable_bytes;    /* behind the last whole segment */
    uint64_t used_percent;      /* of the room for data; garbage does not count */
    uint64_t provisioned_bytes; /* the volumes' sizes; this and what follows is 0 if quick */
    uint64_t logical_bytes;     /* mapped to stored blocks */
    uint64_t unique_bytes;      /* distinct among these, uncompressed */
    uint64_t snapshot_bytes;    /* distinct, and only in snapshots, uncompressed */
    double dedup_ratio;         /* logical to unique */
    double compression_ratio;   /* unique and snapshot to stored */
} siltstone_stat_figures;

/* flags: 0 or SILTSTONE_STAT_QUICK. Set stat->struct_bytes before. What was written a moment ago may still be
 * on its way: it is in pending_bytes then, and not in what is mapped. */
int siltstone_stat(siltstone_pool *pool, uint32_t flags, siltstone_stat_figures *stat);

#ifdef __cplusplus
}
#endif

#endif
