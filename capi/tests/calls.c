/* Calls every function of siltstone.h, rightly and wrongly: calls FOLDER. Built and run by programs.rs. */
#include <pthread.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include <siltstone.h>

#define MIB ((uint64_t)1 << 20)
#define THREADS 4
#define BLOCK 4096

#define EXPECT(condition)                                                                          \
    do {                                                                                           \
        if (!(condition)) {                                                                        \
            fprintf(stderr, "line %d: not so: %s (last error: %s)\n", __LINE__, #condition,        \
                    siltstone_last_error());                                                       \
            exit(1);                                                                               \
        }                                                                                          \
    } while (0)

#define OK(call) EXPECT((call) == SILTSTONE_OK)

static char path[4096];

static int create(void)
{
    siltstone_create_options options = {.struct_bytes = sizeof options, .size_bytes = 128 * MIB};
    return siltstone_create(path, &options);
}

static siltstone_pool *open_pool(uint32_t flags)
{
    siltstone_open_options options = {.struct_bytes = sizeof options, .flags = flags};
    siltstone_pool *pool = NULL;
    options.frame_cache_bytes = 8 * MIB;
    OK(siltstone_open(path, &options, &pool));
    return pool;
}

static siltstone_volume *open_volume(siltstone_pool *pool, const char *name)
{
    siltstone_volume *volume = NULL;
    OK(siltstone_volume_open(pool, name, &volume));
    return volume;
}

static void pools_are_made_once_and_opened_once(void)
{
    siltstone_pool *pool = NULL, *again = NULL;
    EXPECT(siltstone_open(path, NULL, &pool) == SILTSTONE_FILE && pool == NULL);
    EXPECT(strstr(siltstone_last_error(), path) != NULL);
    OK(create());
    EXPECT(create() == SILTSTONE_EXISTS);
    pool = open_pool(0);
    EXPECT(siltstone_open(path, NULL, &again) == SILTSTONE_IN_USE && again == NULL);
    OK(siltstone_close(pool));
    OK(siltstone_close(NULL));
}

static void wrong_calls_are_refused(siltstone_pool *pool)
{
    siltstone_volume *volume = NULL;
    siltstone_list *list = NULL;
    siltstone_stat_figures stat = {.struct_bytes = 0};
    siltstone_create_options options = {.struct_bytes = sizeof options + 8, .size_bytes = MIB};
    EXPECT(siltstone_create(NULL, &options) == SILTSTONE_USAGE);
    EXPECT(siltstone_create(path, &options) == SILTSTONE_USAGE);
    EXPECT(strstr(siltstone_last_error(), "struct_bytes") != NULL);
    options.struct_bytes = sizeof options;
    options.flags = 0x80;
    EXPECT(siltstone_create(path, &options) == SILTSTONE_USAGE);
    EXPECT(siltstone_open(path, NULL, NULL) == SILTSTONE_USAGE);
    EXPECT(siltstone_volume_create(NULL, "disk", MIB) == SILTSTONE_USAGE);
    EXPECT(siltstone_volume_create(pool, NULL, MIB) == SILTSTONE_USAGE);
    EXPECT(siltstone_volume_create(pool, "\xff", MIB) == SILTSTONE_USAGE);
    EXPECT(siltstone_volume_create(pool, "a/b", MIB) == SILTSTONE_REFUSED);
    EXPECT(siltstone_volume_create(pool, "disk", 511) == SILTSTONE_REFUSED);
    EXPECT(siltstone_volume_open(pool, "nothing", &volume) == SILTSTONE_NOT_FOUND);
    EXPECT(siltstone_volume_open(pool, "nothing", NULL) == SILTSTONE_USAGE);
    EXPECT(siltstone_volume_delete(pool, "nothing") == SILTSTONE_NOT_FOUND);
    EXPECT(siltstone_volume_resize(pool, "nothing", MIB) == SILTSTONE_NOT_FOUND);
    EXPECT(siltstone_grow(NULL, 0) == SILTSTONE_USAGE);
    EXPECT(siltstone_snapshot_create(pool, NULL, 1) == SILTSTONE_USAGE);
    EXPECT(siltstone_snapshot_delete(pool, "no-snapshot") == SILTSTONE_REFUSED);
    EXPECT(siltstone_snapshot_delete(pool, "no@snapshot") == SILTSTONE_NOT_FOUND);
    EXPECT(siltstone_snapshot_roll_back(pool, "no@snapshot") == SILTSTONE_NOT_FOUND);
    EXPECT(siltstone_snapshot_clone(pool, "no@snapshot", "clone") == SILTSTONE_NOT_FOUND);
    EXPECT(siltstone_volume_list(NULL, &list) == SILTSTONE_USAGE && list == NULL);
    EXPECT(siltstone_snapshot_list(pool, NULL) == SILTSTONE_USAGE);
    EXPECT(siltstone_stat(pool, 0, NULL) == SILTSTONE_USAGE);
    EXPECT(siltstone_stat(pool, 0, &stat) == SILTSTONE_USAGE);
    EXPECT(siltstone_read(NULL, 0, path, 1) == SILTSTONE_USAGE);
    EXPECT(siltstone_write(NULL, 0, path, 1) == SILTSTONE_USAGE);
    EXPECT(siltstone_flush(NULL) == SILTSTONE_USAGE);
    EXPECT(siltstone_discard(NULL, 0, 1) == SILTSTONE_USAGE);
    EXPECT(siltstone_write_zeroes(NULL, 0, 1) == SILTSTONE_USAGE);
    EXPECT(siltstone_volume_size_bytes(NULL) == 0);
    siltstone_volume_close(NULL);
    siltstone_list_free(NULL);
}

static void bytes_are_kept_given_back_and_zeroed(siltstone_pool *pool)
{
    char back[3 * BLOCK], zeros[3 * BLOCK] = {0}, noise[3 * BLOCK];
    for (size_t at = 0; at < sizeof noise; at++)
        noise[at] = (char)(rand() % 255 + 1);
    OK(siltstone_volume_create(pool, "bytes", 4 * MIB));
    EXPECT(siltstone_volume_create(pool, "bytes", 4 * MIB) == SILTSTONE_EXISTS);
    siltstone_volume *volume = open_volume(pool, "bytes");
    EXPECT(siltstone_volume_size_bytes(volume) == 4 * MIB);
    OK(siltstone_write(volume, 100, noise, sizeof noise));
    OK(siltstone_read(volume, 100, back, sizeof back));
    EXPECT(memcmp(back, noise, sizeof back) == 0);

    /* Blocks 1 and 2 are within the range as a whole: only they are given back. */
    OK(siltstone_discard(volume, 100, sizeof noise));
    OK(siltstone_read(volume, 100, back, sizeof back));
    EXPECT(memcmp(back, noise, BLOCK - 100) == 0);
    EXPECT(memcmp(back + BLOCK - 100, zeros, 2 * BLOCK) == 0);
    EXPECT(memcmp(back + 3 * BLOCK - 100, noise + 3 * BLOCK - 100, 100) == 0);
    OK(siltstone_write_zeroes(volume, 100, sizeof noise));
    OK(siltstone_read(volume, 100, back, sizeof back));
    EXPECT(memcmp(back, zeros, sizeof back) == 0);

    EXPECT(siltstone_write(volume, 4 * MIB - 1, noise, 2) == SILTSTONE_REFUSED);
    EXPECT(strstr(siltstone_last_error(), "pass the end") != NULL);
    EXPECT(siltstone_read(volume, 4 * MIB, back, 1) == SILTSTONE_REFUSED);
    EXPECT(siltstone_discard(volume, 0, 5 * MIB) == SILTSTONE_REFUSED);
    EXPECT(siltstone_write(volume, 0, NULL, 1) == SILTSTONE_USAGE);
    EXPECT(siltstone_read(volume, 0, NULL, 1) == SILTSTONE_USAGE);
    OK(siltstone_write(volume, 0, NULL, 0));
    OK(siltstone_read(volume, 0, NULL, 0));

    OK(siltstone_volume_resize(pool, "bytes", 8 * MIB));
    EXPECT(siltstone_volume_size_bytes(volume) == 8 * MIB);
    OK(siltstone_flush(volume));
    OK(siltstone_volume_delete(pool, "bytes"));
    EXPECT(siltstone_read(volume, 0, back, 1) == SILTSTONE_STALE);
    siltstone_volume_close(volume);
}

static void snapshots_keep_their_moment(siltstone_pool *pool)
{
    const char *names[] = {"one@then", "two@then"}, *half[] = {"one@later", "none@later"};
    char back[6] = "";
    siltstone_list *list = NULL;
    OK(siltstone_volume_create(pool, "one", MIB));
    OK(siltstone_volume_create(pool, "two", 2 * MIB));
    siltstone_volume *one = open_volume(pool, "one");
    OK(siltstone_write(one, 5000, "first", 5));
    OK(siltstone_snapshot_create(pool, names, 2));
    EXPECT(siltstone_snapshot_create(pool, names, 1) == SILTSTONE_EXISTS);
    EXPECT(siltstone_snapshot_create(pool, half, 2) == SILTSTONE_NOT_FOUND);
    OK(siltstone_write(one, 5000, "later", 5));

    siltstone_volume *then = open_volume(pool, "one@then");
    OK(siltstone_read(then, 5000, back, 5));
    EXPECT(strcmp(back, "first") == 0);
    EXPECT(siltstone_write(then, 0, "x", 1) == SILTSTONE_READ_ONLY);
    siltstone_volume_close(then);
    EXPECT(siltstone_volume_delete(pool, "one") == SILTSTONE_REFUSED);

    OK(siltstone_snapshot_clone(pool, "one@then", "clone"));
    siltstone_volume *clone = open_volume(pool, "clone");
    OK(siltstone_read(clone, 5000, back, 5));
    EXPECT(strcmp(back, "first") == 0);
    siltstone_volume_close(clone);

    OK(siltstone_snapshot_roll_back(pool, "one@then"));
    EXPECT(siltstone_read(one, 5000, back, 5) == SILTSTONE_STALE);
    siltstone_volume_close(one);
    one = open_volume(pool, "one");
    OK(siltstone_read(one, 5000, back, 5));
    EXPECT(strcmp(back, "first") == 0);
    siltstone_volume_close(one);

    OK(siltstone_snapshot_list(pool, &list));
    EXPECT(siltstone_list_count(list) == 2);
    EXPECT(strcmp(siltstone_list_name(list, 1), "two@then") == 0);
    EXPECT(siltstone_list_size_bytes(list, 1) == 2 * MIB);
    EXPECT(siltstone_list_created_unix_s(list, 1) > 1700000000);
    EXPECT(siltstone_list_name(list, 2) == NULL && siltstone_list_size_bytes(list, 2) == 0);
    siltstone_list_free(list);
    OK(siltstone_volume_list(pool, &list));
    EXPECT(siltstone_list_count(list) == 3);
    EXPECT(strcmp(siltstone_list_name(list, 0), "clone") == 0);
    EXPECT(siltstone_list_created_unix_s(list, 0) == 0);
    siltstone_list_free(list);
    OK(siltstone_snapshot_delete(pool, "one@then"));
    OK(siltstone_volume_delete(pool, "one"));
}

struct work {
    siltstone_pool *pool;
    siltstone_volume *volume;
    int number;
};

static void *write_and_read(void *argument)
{
    const struct work *work = argument;
    char block[BLOCK], back[BLOCK], name[32];
    for (uint64_t round = 0; round < 64; round++) {
        uint64_t offset_bytes = (round * THREADS + (uint64_t)work->number) * BLOCK;
        memset(block, (int)(round + 1), sizeof block);
        block[0] = (char)work->number;
        OK(siltstone_write(work->volume, offset_bytes, block, sizeof block));
        OK(siltstone_read(work->volume, offset_bytes, back, sizeof back));
        EXPECT(memcmp(block, back, sizeof block) == 0);
        if (round % 16 == 0)
            OK(siltstone_flush(work->volume));
    }
    /* Each thread has its own last error. */
    snprintf(name, sizeof name, "of-thread-%d", work->number);
    siltstone_volume *none = NULL;
    EXPECT(siltstone_volume_open(work->pool, name, &none) == SILTSTONE_NOT_FOUND);
    EXPECT(strstr(siltstone_last_error(), name) != NULL);
    return NULL;
}

static void threads_share_handles(siltstone_pool *pool)
{
    pthread_t threads[THREADS];
    struct work work[THREADS];
    OK(siltstone_volume_create(pool, "shared", 64 * MIB));
    siltstone_volume *volume = open_volume(pool, "shared");
    EXPECT(siltstone_volume_open(pool, "of-main", &work[0].volume) == SILTSTONE_NOT_FOUND);
    for (int number = 0; number < THREADS; number++) {
        work[number] = (struct work){pool, volume, number};
        EXPECT(pthread_create(&threads[number], NULL, write_and_read, &work[number]) == 0);
    }
    for (int number = 0; number < THREADS; number++)
        pthread_join(threads[number], NULL);
    EXPECT(strstr(siltstone_last_error(), "of-main") != NULL);
    siltstone_volume_close(volume);
}

static void figures_add_up(siltstone_pool *pool)
{
    siltstone_stat_figures stat = {.struct_bytes = sizeof stat}, quick = stat, old = stat;
    EXPECT(siltstone_stat(pool, 8, &stat) == SILTSTONE_USAGE);
    OK(siltstone_stat(pool, 0, &stat));
    uint64_t parts = stat.stored_bytes + stat.garbage_bytes + stat.overhead_bytes
                     + stat.metadata_bytes + stat.reserved_bytes + stat.pending_bytes
                     + stat.free_bytes + stat.unusable_bytes;
    EXPECT(stat.struct_bytes == sizeof stat && stat.fullness == SILTSTONE_FULLNESS_NORMAL);
    EXPECT(parts == stat.size_bytes && stat.size_bytes == 128 * MIB);
    EXPECT(stat.logical_bytes >= (uint64_t)THREADS * 64 * BLOCK && stat.dedup_ratio >= 1);
    OK(siltstone_stat(pool, SILTSTONE_STAT_QUICK, &quick));
    EXPECT(quick.size_bytes == stat.size_bytes && quick.logical_bytes == 0);

    /* A program that was built when the structure ended behind size_bytes. */
    old.struct_bytes = offsetof(siltstone_stat_figures, stored_bytes);
    old.stored_bytes = 42;
    OK(siltstone_stat(pool, 0, &old));
    EXPECT(old.size_bytes == stat.size_bytes && old.stored_bytes == 42);

    OK(siltstone_grow(pool, 256 * MIB));
    OK(siltstone_stat(pool, SILTSTONE_STAT_QUICK, &stat));
    EXPECT(stat.size_bytes == 256 * MIB);
    EXPECT(siltstone_grow(pool, 128 * MIB) == SILTSTONE_REFUSED);
}

static void what_was_written_is_there_after_closing(siltstone_pool *pool)
{
    char back[5];
    siltstone_volume *two = open_volume(pool, "two");
    OK(siltstone_write(two, 0, "there", 5));
    OK(siltstone_close(pool));
    /* The volume is still open: it holds the lock, and takes no more. */
    EXPECT(siltstone_write(two, 0, "there", 5) == SILTSTONE_CLOSED);
    siltstone_volume_close(two);

    pool = open_pool(SILTSTONE_OPEN_READ_ONLY);
    EXPECT(siltstone_volume_create(pool, "new", MIB) == SILTSTONE_READ_ONLY);
    two = open_volume(pool, "two");
    OK(siltstone_read(two, 0, back, sizeof back));
    EXPECT(memcmp(back, "there", sizeof back) == 0);
    EXPECT(siltstone_write(two, 0, "x", 1) == SILTSTONE_READ_ONLY);
    siltstone_volume_close(two);
    OK(siltstone_close(pool));
}

static void a_file_that_is_no_pool_is_refused(const char *folder)
{
    siltstone_pool *pool = NULL;
    snprintf(path, sizeof path, "%s/no-pool", folder);
    FILE *file = fopen(path, "w");
    EXPECT(file != NULL);
    for (int at = 0; at < 1 << 20; at++)
        fputc('x', file);
    EXPECT(fclose(file) == 0);
    EXPECT(siltstone_open(path, NULL, &pool) == SILTSTONE_BAD_POOL && pool == NULL);
}

int main(int argc, char **argv)
{
    EXPECT(argc == 2);
    EXPECT(strcmp(siltstone_last_error(), "") == 0);
    EXPECT(strlen(siltstone_version()) >= 5);
    for (int code = SILTSTONE_OK; code <= SILTSTONE_PANIC; code++)
        EXPECT(strcmp(siltstone_code_text(code), "unknown code") != 0);
    EXPECT(strcmp(siltstone_code_text(-1), "unknown code") == 0);

    snprintf(path, sizeof path, "%s/pool", argv[1]);
    pools_are_made_once_and_opened_once();
    siltstone_pool *pool = open_pool(0);
    wrong_calls_are_refused(pool);
    bytes_are_kept_given_back_and_zeroed(pool);
    snapshots_keep_their_moment(pool);
    threads_share_handles(pool);
    /* Closing finishes what is on its way: figures have it afterwards. */
    OK(siltstone_close(pool));
    pool = open_pool(0);
    figures_add_up(pool);
    what_was_written_is_there_after_closing(pool);
    a_file_that_is_no_pool_is_refused(argv[1]);
    puts("all calls did what they should");
    return 0;
}
