/* What FUSE itself costs: one directory, read-only, nothing decrypted. `passthrough SOURCE MOUNTPOINT`, in the foreground.
 * Build: gcc -O2 passthrough.c -o passthrough $(pkg-config --cflags --libs fuse3) */
#define _GNU_SOURCE
#define FUSE_USE_VERSION 312
#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <fuse_lowlevel.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

enum { MAX_FILES = 1024, REQUEST = 1 << 20 };
static const double forever = 3600;
static struct file { char name[256]; int fd; struct stat st; } files[MAX_FILES]; /* inode = row + 2 */
static int count;
static struct stat top = {.st_ino = FUSE_ROOT_ID, .st_mode = S_IFDIR | 0555, .st_nlink = 2};

static const struct stat *find(fuse_ino_t ino) {
    return ino == FUSE_ROOT_ID ? &top : ino - 2 < (fuse_ino_t)count ? &files[ino - 2].st : NULL;
}
static void do_lookup(fuse_req_t req, fuse_ino_t parent, const char *name) {
    struct fuse_entry_param e = {.attr_timeout = forever, .entry_timeout = forever};
    for (int row = 0; parent == FUSE_ROOT_ID && row < count; row++)
        if (!strcmp(files[row].name, name)) e.ino = row + 2, e.attr = files[row].st;
    if (e.ino) fuse_reply_entry(req, &e); else fuse_reply_err(req, ENOENT);
}
static void do_getattr(fuse_req_t req, fuse_ino_t ino, struct fuse_file_info *fi) {
    (void)fi;
    if (find(ino)) fuse_reply_attr(req, find(ino), forever); else fuse_reply_err(req, ENOENT);
}
static void do_open(fuse_req_t req, fuse_ino_t ino, struct fuse_file_info *fi) {
    (void)ino;
    fi->keep_cache = 1; /* as modelfs: what was read stays readable from the page cache */
    fuse_reply_open(req, fi);
}
static void do_read(fuse_req_t req, fuse_ino_t ino, size_t size, off_t offset, struct fuse_file_info *fi) {
    (void)fi;
    static _Thread_local char *buffer; /* page-aligned: anything else makes the kernel's copies several times slower */
    if (!buffer && posix_memalign((void **)&buffer, 4096, REQUEST)) abort();
    ssize_t got = pread(files[ino - 2].fd, buffer, size < REQUEST ? size : REQUEST, offset);
    if (got < 0) fuse_reply_err(req, errno); else fuse_reply_buf(req, buffer, got);
}
static void do_readdir(fuse_req_t req, fuse_ino_t ino, size_t size, off_t row, struct fuse_file_info *fi) {
    (void)ino, (void)fi;
    char *buffer = malloc(size);
    size_t used = 0;
    for (; row < count; row++) {
        size_t need = fuse_add_direntry(req, buffer + used, size - used, files[row].name, &files[row].st, row + 1);
        if (need > size - used) break;
        used += need;
    }
    fuse_reply_buf(req, buffer, used);
    free(buffer);
}

int main(int argc, char **argv) {
    DIR *dir = argc == 3 ? opendir(argv[1]) : NULL;
    if (!dir) return 2;
    for (struct dirent *entry; count < MAX_FILES && (entry = readdir(dir));) {
        struct file *file = &files[count];
        if (fstatat(dirfd(dir), entry->d_name, &file->st, 0) || !S_ISREG(file->st.st_mode)) continue;
        if ((file->fd = openat(dirfd(dir), entry->d_name, O_RDONLY | O_CLOEXEC)) < 0) continue;
        strcpy(file->name, entry->d_name);
        file->st.st_ino = ++count + 1;
    }
    static const struct fuse_lowlevel_ops ops = {
        .lookup = do_lookup, .getattr = do_getattr, .open = do_open, .read = do_read, .readdir = do_readdir};
    struct fuse_args args = FUSE_ARGS_INIT(0, NULL);
    fuse_opt_add_arg(&args, argv[0]);
    fuse_opt_add_arg(&args, "-oro,nosuid,nodev,default_permissions,fsname=passthrough,subtype=passthrough");
    struct fuse_session *session = fuse_session_new(&args, &ops, sizeof ops, NULL);
    if (!session || fuse_set_signal_handlers(session) || fuse_session_mount(session, argv[2])) return 1;
    struct fuse_loop_config *config = fuse_loop_cfg_create(); /* a thread for each core, and a few more, each on its own clone */
    fuse_loop_cfg_set_clone_fd(config, 1);
    fuse_loop_cfg_set_max_threads(config, sysconf(_SC_NPROCESSORS_ONLN) + 2);
    int result = fuse_session_loop_mt(session, config);
    fuse_session_unmount(session);
    fuse_session_destroy(session);
    return result != 0;
}
