/* A file system without flock or without chmod, below the folder that NO_FLOCK or NO_CHMOD names. For LD_PRELOAD. */
#define _GNU_SOURCE
#include <dlfcn.h>
#include <errno.h>
#include <limits.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>

static int below(const char *path, const char *variable) {
  const char *folder = getenv(variable);
  char real[PATH_MAX];
  return folder && realpath(path, real) && !strncmp(real, folder, strlen(folder));
}

static int open_below(int file, const char *variable) {
  char link[64];
  snprintf(link, sizeof link, "/proc/self/fd/%d", file);
  return below(link, variable);
}

int flock(int file, int operation) {
  int (*original)(int, int) = dlsym(RTLD_NEXT, "flock");
  return open_below(file, "NO_FLOCK") ? (errno = ENOLCK, -1) : original(file, operation);
}

int chmod(const char *path, mode_t mode) {
  int (*original)(const char *, mode_t) = dlsym(RTLD_NEXT, "chmod");
  return below(path, "NO_CHMOD") ? (errno = EPERM, -1) : original(path, mode);
}

int fchmod(int file, mode_t mode) {
  int (*original)(int, mode_t) = dlsym(RTLD_NEXT, "fchmod");
  return open_below(file, "NO_CHMOD") ? (errno = EPERM, -1) : original(file, mode);
}
