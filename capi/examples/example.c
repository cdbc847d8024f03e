/* A pool in a C program: makes one, writes from two threads, takes a snapshot, and says what it holds.
 *
 *     cc -o example example.c $(pkg-config --cflags --libs siltstone) -lpthread
 *     ./example pool.silt
 */
#include <inttypes.h>
#include <pthread.h>
#include <stdio.h>
#include <stdlib.h>

#include <siltstone.h>

#define GIB (UINT64_C(1) << 30)
#define PIECE_BYTES ((size_t)64 << 10)
#define PIECES 64

/* Ends the program with the library's sentence if a call has failed. */
static void check(int code, const char *what)
{
    if (code == SILTSTONE_OK)
        return;
    fprintf(stderr, "%s: %s (%s)\n", what, siltstone_last_error(), siltstone_code_text(code));
    exit(code);
}

/* Both threads write the same, each to its own half of the volume. */
struct half {
    siltstone_volume *disk;
    uint64_t offset_bytes;
};

static void *fill(void *argument)
{
    const struct half *half = argument;
    unsigned char *piece = malloc(PIECE_BYTES);
    if (piece == NULL)
        exit(SILTSTONE_OTHER);
    for (uint64_t number = 0; number < PIECES; number++) {
        for (size_t at = 0; at < PIECE_BYTES; at++)
            piece[at] = (unsigned char)(number + at / 16);
        check(siltstone_write(half->disk, half->offset_bytes + number * PIECE_BYTES, piece, PIECE_BYTES),
              "write");
    }
    free(piece);
    return NULL;
}

static void list_snapshots(siltstone_pool *pool)
{
    siltstone_list *list = NULL;
    check(siltstone_snapshot_list(pool, &list), "list");
    for (size_t at = 0; at < siltstone_list_count(list); at++)
        printf("snapshot %s: %" PRIu64 " bytes\n", siltstone_list_name(list, at),
               siltstone_list_size_bytes(list, at));
    siltstone_list_free(list);
}

int main(int argc, char **argv)
{
    if (argc != 2) {
        fprintf(stderr, "usage: example POOL\n");
        return SILTSTONE_USAGE;
    }
    siltstone_create_options options = {.struct_bytes = sizeof options, .size_bytes = GIB};
    check(siltstone_create(argv[1], &options), "create");
    siltstone_pool *pool = NULL;
    check(siltstone_open(argv[1], NULL, &pool), "open");
    check(siltstone_volume_create(pool, "disk", 10 * GIB), "create the volume");
    siltstone_volume *disk = NULL;
    check(siltstone_volume_open(pool, "disk", &disk), "open the volume");

    pthread_t threads[2];
    struct half halves[2] = {{disk, 0}, {disk, 5 * GIB}};
    for (int number = 0; number < 2; number++)
        if (pthread_create(&threads[number], NULL, fill, &halves[number]) != 0)
            return SILTSTONE_OTHER;
    for (int number = 0; number < 2; number++)
        pthread_join(threads[number], NULL);
    /* What was written before survives a power cut from here on. */
    check(siltstone_flush(disk), "flush");

    const char *snapshots[] = {"disk@first"};
    check(siltstone_snapshot_create(pool, snapshots, 1), "snapshot");
    check(siltstone_discard(disk, 0, 5 * GIB), "discard");
    list_snapshots(pool);

    /* A snapshot is read like a volume, and still holds what the volume has given back. */
    siltstone_volume *first = NULL;
    unsigned char then[16], now[16];
    check(siltstone_volume_open(pool, "disk@first", &first), "open the snapshot");
    check(siltstone_read(first, PIECE_BYTES, then, sizeof then), "read the snapshot");
    check(siltstone_read(disk, PIECE_BYTES, now, sizeof now), "read");
    printf("byte %zu: %d in the snapshot, %d in the volume\n", PIECE_BYTES, then[0], now[0]);
    siltstone_volume_close(first);

    /* A failure is a code, and a sentence for people. */
    siltstone_volume *other = NULL;
    if (siltstone_volume_open(pool, "tape", &other) == SILTSTONE_NOT_FOUND)
        printf("as expected: %s\n", siltstone_last_error());

    siltstone_stat_figures stat = {.struct_bytes = sizeof stat};
    check(siltstone_stat(pool, 0, &stat), "stat");
    printf("the pool has %" PRIu64 " bytes, and %" PRIu64 " are free\n", stat.size_bytes,
           stat.free_bytes);

    siltstone_volume_close(disk);
    check(siltstone_close(pool), "close");
    return 0;
}
