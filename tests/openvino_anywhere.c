/* Stands before OpenVINO's plug-in, and says of every processor that it is Intel's.

   All else is handed on as it is. Functions of onnxruntime's C interface are known by
   their places in a table, which never change once a version has them: the vendor of a
   device has been number 308 since version 22. */
#include <dlfcn.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <string.h>

enum {
  VENDOR_ID = 308,
  INTEL = 0x8086,
  /* More than the table of onnxruntime 1.32 has; what is copied beyond is not used. */
  PLACES = 600,
};

typedef struct {
  const void *(*get_api)(uint32_t version);
  const char *(*get_version)(void);
} Base;

typedef void *(*Create)(const char *, const Base *, const void *, void **, size_t,
                        size_t *);
typedef void *(*Release)(void *);

static const Base *theirs;
static Base ours;
static const void *table[PLACES];
static void *plugin;

static uint32_t intel(const void *device) {
  (void)device;
  return INTEL;
}

static const void *get_api(uint32_t version) {
  const void *found = theirs->get_api(version);
  if (found == NULL) return NULL;
  memcpy(table, found, sizeof table);
  table[VENDOR_ID] = (const void *)intel;
  return table;
}

void *CreateEpFactories(const char *name, const Base *base, const void *logger,
                        void **factories, size_t most, size_t *count) {
  *count = 0;
  theirs = base;
  ours.get_api = get_api;
  ours.get_version = base->get_version;
  plugin = dlopen(PLUGIN, RTLD_NOW | RTLD_LOCAL);
  if (plugin == NULL) {
    fprintf(stderr, "%s\n", dlerror());
    return NULL;
  }
  Create create = (Create)dlsym(plugin, "CreateEpFactories");
  return create(name, &ours, logger, factories, most, count);
}

void *ReleaseEpFactory(void *factory) {
  return ((Release)dlsym(plugin, "ReleaseEpFactory"))(factory);
}
