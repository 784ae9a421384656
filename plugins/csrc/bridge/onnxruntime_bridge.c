/* Kernel nodes for ONNX Runtime: every node's work is done by functions of the program that loads
 * this library. Each session has operators of its own, which know it: so nodes are made, run and
 * given back for their own session, on whatever thread.
 *
 * What is used of ONNX Runtime's C interface, which only ever grows, is declared here by position,
 * so that it compiles without ONNX Runtime's headers.
 */
#include <stdatomic.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>

enum { kApiVersion = 18, kMaxRank = 8, kMaxInputs = 24, kMaxOutputs = 8, kMessageBytes = 1024 };
enum { kBridgeVersion = 2, kProviderBytes = 64 };

static const char kSessionEntry[] = "longlive.session";

enum Api {
  kCreateStatus = 0,
  kCreateCustomOpDomain = 26,
  kCustomOpDomainAdd = 27,
  kAddCustomOpDomain = 28,
  kGetTensorMutableData = 51,
  kGetTensorElementType = 60,
  kGetDimensionsCount = 61,
  kGetDimensions = 62,
  kGetTensorTypeAndShape = 65,
  kKernelInfoGetAttributeString = 87,
  kKernelContextGetInputCount = 88,
  kKernelContextGetOutputCount = 89,
  kKernelContextGetInput = 90,
  kKernelContextGetOutput = 91,
  kReleaseTensorTypeAndShapeInfo = 99,
  kReleaseCustomOpDomain = 101,
  kGetSessionConfigEntry = 238,
};

enum ElementType {
  kAnyType = 0,
  kFloat = 1,
  kUInt8 = 2,
  kInt8 = 3,
  kFloat16 = 10,
  kBFloat16 = 16,
  kFloat8E4M3 = 17,
};

enum { kGenericError = 1, kRequired = 0, kVariadic = 2 };

typedef struct {
  void *data;
  int64_t rank;
  int64_t sizes[kMaxRank];
  int64_t element_type;
} Tensor;

/* The program's functions. The first three write a message and return non-zero, or do their work and
 * return zero. Sessions have the numbers that the program gave them. */
typedef int (*CreateFunction)(int64_t session, const char *spec, int64_t *node, char *message);
typedef int (*ShapesFunction)(int64_t session, int64_t node, int64_t inputs, const Tensor *input,
                              int64_t outputs, Tensor *output, char *message);
typedef int (*RunFunction)(int64_t session, int64_t node, int64_t inputs, const Tensor *input,
                           int64_t outputs, const Tensor *output, char *message);
typedef void (*DropFunction)(int64_t session, int64_t node);

static struct {
  CreateFunction create;
  ShapesFunction shapes;
  RunFunction run;
  DropFunction drop;
} program;

typedef void *Status;
typedef struct Session Session;

/* What ONNX Runtime sees of an operator; it hands its address back to each of the functions. */
typedef struct {
  uint32_t version;
  void *create_kernel, *get_name, *get_provider, *get_input_type, *get_input_count;
  void *get_output_type, *get_output_count, *compute, *destroy, *get_input_kind, *get_output_kind;
  void *get_input_memory, *least_inputs, *inputs_alike, *least_outputs, *outputs_alike;
  void *create_kernel_v2, *compute_v2, *infer_shapes, *get_start_version, *get_end_version;
  void *get_in_place, *release_in_place, *get_aliases, *release_aliases;
} CustomOp;

enum { kMixedOutputs = 5 };

typedef struct {
  const char *name;
  size_t count; /* of outputs, if it is fixed; others are all of the first type */
  int types[kMixedOutputs];
} OutputTypes;

static const OutputTypes kOperators[] = {
    {"KernelFloat", 0, {kFloat}},
    {"KernelUInt8", 0, {kUInt8}},
    {"KernelInt8", 0, {kInt8}},
    {"KernelFloat16", 0, {kFloat16}},
    {"KernelBFloat16", 0, {kBFloat16}},
    {"KernelFloat8E4M3", 0, {kFloat8E4M3}},
    {"KernelFloatAndFloat8E4M3", 2, {kFloat, kFloat8E4M3}},
    {"KernelFloat16AndFloat8E4M3", 2, {kFloat16, kFloat8E4M3}},
    {"KernelBFloat16AndFloat8E4M3", 2, {kBFloat16, kFloat8E4M3}},
    {"KernelFloat16AndTwoFloat8E4M3", 3, {kFloat16, kFloat8E4M3, kFloat8E4M3}},
    {"KernelFloat16AndTwoInt8", 3, {kFloat16, kInt8, kInt8}},
    {"KernelTwoInt8Float8E4M3AndFloat", 4, {kInt8, kInt8, kFloat8E4M3, kFloat}},
    {"KernelTwoInt8Float8E4M3AndTwoFloat", 5, {kInt8, kInt8, kFloat8E4M3, kFloat, kFloat}},
    {"KernelTwoInt8Float8E4M3FloatAndFloat16", 5, {kInt8, kInt8, kFloat8E4M3, kFloat, kFloat16}},
    {"KernelTwoInt8Float8E4M3FloatAndBFloat16", 5, {kInt8, kInt8, kFloat8E4M3, kFloat, kBFloat16}},
};
enum { kOperatorCount = sizeof kOperators / sizeof kOperators[0] };

typedef struct {
  CustomOp op; /* first, so that its address is the operator's */
  const OutputTypes *outputs;
  Session *session;
} Operator;

struct Session {
  int64_t number;
  char provider[kProviderBytes]; /* empty for the CPU's */
  atomic_int holders;            /* the program, until it closes the session, and every kernel */
  void *domain;
  Operator operators[kOperatorCount];
};

typedef struct {
  Session *session;
  int64_t node;
  int was_made;
  char message[kMessageBytes]; /* why it was not */
} Kernel;

static void *const *api;
static atomic_int open_sessions;

#define API(position, type) ((type)api[position])

static const OutputTypes *outputs_of(const void *op) { return ((const Operator *)op)->outputs; }
static int is_mixed(const void *op) { return outputs_of(op)->count > 0; }

static Status failure(const char *message) {
  return API(kCreateStatus, Status(*)(int, const char *))(kGenericError, message);
}

static void release(Session *session) {
  if (atomic_fetch_sub(&session->holders, 1) > 1) return;
  if (session->domain) API(kReleaseCustomOpDomain, void (*)(void *))(session->domain);
  free(session);
  atomic_fetch_sub(&open_sessions, 1);
}

/* ---- nodes ---------------------------------------------------------------------------------- */

typedef Status (*GetString)(const void *, const char *, char *, size_t *);

static void *create_kernel(const void *op, const void *unused, const void *info) {
  size_t size = 0;
  Kernel *kernel = calloc(1, sizeof *kernel);
  (void)unused;
  kernel->session = ((const Operator *)op)->session;
  atomic_fetch_add(&kernel->session->holders, 1);
  API(kKernelInfoGetAttributeString, GetString)(info, "spec", NULL, &size);
  char *spec = calloc(size + 1, 1);
  API(kKernelInfoGetAttributeString, GetString)(info, "spec", spec, &size);
  if (program.create == NULL)
    snprintf(kernel->message, kMessageBytes, "no program has registered itself");
  else
    kernel->was_made =
        !program.create(kernel->session->number, spec, &kernel->node, kernel->message);
  free(spec);
  return kernel;
}

static void destroy_kernel(void *opaque) {
  Kernel *kernel = opaque;
  if (kernel->was_made && program.drop) program.drop(kernel->session->number, kernel->node);
  release(kernel->session);
  free(kernel);
}

static Status describe(const void *value, Tensor *tensor) {
  void *info;
  size_t rank;
  int element_type;
  Status status =
      API(kGetTensorTypeAndShape, Status(*)(const void *, void **))(value, &info);
  if (status) return status;
  API(kGetDimensionsCount, Status(*)(const void *, size_t *))(info, &rank);
  API(kGetTensorElementType, Status(*)(const void *, int *))(info, &element_type);
  if (rank <= kMaxRank)
    API(kGetDimensions, Status(*)(const void *, int64_t *, size_t))(info, tensor->sizes, rank);
  API(kReleaseTensorTypeAndShapeInfo, void (*)(void *))(info);
  if (rank > kMaxRank) return failure("a kernel's tensor has too many axes");
  tensor->rank = (int64_t)rank;
  tensor->element_type = element_type;
  return API(kGetTensorMutableData, Status(*)(const void *, void **))(value, &tensor->data);
}

static Status read_input(void *context, size_t index, Tensor *tensor) {
  const void *value;
  Status status = API(kKernelContextGetInput, Status(*)(const void *, size_t, const void **))(
      context, index, &value);
  return status ? status : describe(value, tensor);
}

static Status make_output(void *context, size_t index, Tensor *tensor) {
  void *value;
  Status status = API(kKernelContextGetOutput,
                      Status(*)(void *, size_t, const int64_t *, size_t, void **))(
      context, index, tensor->sizes, (size_t)tensor->rank, &value);
  return status ? status : describe(value, tensor);
}

static Status run_kernel(void *opaque, void *context) {
  Kernel *kernel = opaque;
  const int64_t session = kernel->session->number, node = kernel->node;
  Tensor input[kMaxInputs], output[kMaxOutputs];
  size_t inputs, outputs;
  char message[kMessageBytes] = "";
  Status status;
  if (!kernel->was_made) return failure(kernel->message);
  if (program.run == NULL) return failure("the program has left");
  API(kKernelContextGetInputCount, Status(*)(const void *, size_t *))(context, &inputs);
  API(kKernelContextGetOutputCount, Status(*)(const void *, size_t *))(context, &outputs);
  if (inputs > kMaxInputs || outputs > kMaxOutputs) return failure("a kernel has too many tensors");
  for (size_t i = 0; i < inputs; i++)
    if ((status = read_input(context, i, &input[i]))) return status;
  if (program.shapes(session, node, (int64_t)inputs, input, (int64_t)outputs, output, message))
    return failure(message);
  for (size_t i = 0; i < outputs; i++)
    if ((status = make_output(context, i, &output[i]))) return status;
  if (program.run(session, node, (int64_t)inputs, input, (int64_t)outputs, output, message))
    return failure(message);
  return NULL;
}

/* ---- operators ------------------------------------------------------------------------------ */

static Status create_kernel_v2(const void *op, const void *unused, const void *info, void **made) {
  *made = create_kernel(op, unused, info);
  return NULL;
}

static const char *name(const void *op) { return outputs_of(op)->name; }
static const char *provider(const void *op) {
  const char *name = ((const Operator *)op)->session->provider;
  return name[0] ? name : NULL;
}
static int any_type(const void *op, size_t index) { return (void)op, (void)index, kAnyType; }
static int output_type(const void *op, size_t index) {
  return outputs_of(op)->types[is_mixed(op) ? index : 0];
}
static size_t input_count(const void *op) { return (void)op, 1; } /* a group of any number */
static size_t output_count(const void *op) { return is_mixed(op) ? outputs_of(op)->count : 1; }
static int input_kind(const void *op, size_t index) { return (void)op, (void)index, kVariadic; }
static int output_kind(const void *op, size_t index) {
  return (void)index, is_mixed(op) ? kRequired : kVariadic;
}
static int default_memory(const void *op, size_t index) { return (void)op, (void)index, 0; }
static int at_least_one(const void *op) { return (void)op, 1; }
static int of_many_types(const void *op) { return (void)op, 0; }
static int of_one_type(const void *op) { return (void)op, 1; }
static int first_version(const void *op) { return (void)op, 1; }
static int last_version(const void *op) { return (void)op, 0x7fffffff; }

static const CustomOp kFunctions = {
    .version = kApiVersion,
    .get_name = (void *)name,
    .get_provider = (void *)provider,
    .create_kernel = (void *)create_kernel,
    .create_kernel_v2 = (void *)create_kernel_v2,
    .compute_v2 = (void *)run_kernel,
    .destroy = (void *)destroy_kernel,
    .get_input_type = (void *)any_type,
    .get_output_type = (void *)output_type,
    .get_input_count = (void *)input_count,
    .get_output_count = (void *)output_count,
    .get_input_kind = (void *)input_kind,
    .get_output_kind = (void *)output_kind,
    .get_input_memory = (void *)default_memory,
    .least_inputs = (void *)at_least_one,
    .least_outputs = (void *)at_least_one,
    .inputs_alike = (void *)of_many_types,
    .outputs_alike = (void *)of_one_type,
    .get_start_version = (void *)first_version,
    .get_end_version = (void *)last_version,
};

/* ---- for the program ------------------------------------------------------------------------ */

int longlive_bridge_version(void) { return kBridgeVersion; }

/* NULLs disconnect: what is given back later is given back silently. */
void longlive_bridge_connect(CreateFunction create, ShapesFunction shapes, RunFunction run,
                             DropFunction drop) {
  program.create = create;
  program.shapes = shapes;
  program.run = run;
  program.drop = drop;
}

/* Its address, in decimal, is what the entry `longlive.session` of a session's options holds. */
Session *longlive_session_open(int64_t number, const char *provider) {
  Session *session = calloc(1, sizeof *session);
  if (session == NULL) return NULL;
  session->number = number;
  snprintf(session->provider, kProviderBytes, "%s", provider);
  atomic_init(&session->holders, 1);
  for (size_t i = 0; i < kOperatorCount; i++)
    session->operators[i] = (Operator){kFunctions, &kOperators[i], session};
  atomic_fetch_add(&open_sessions, 1);
  return session;
}

/* Its memory goes with its last kernel. */
void longlive_session_close(Session *session) { release(session); }

/* How many sessions have memory here. */
int longlive_sessions(void) { return atomic_load(&open_sessions); }

/* ---- for ONNX Runtime ----------------------------------------------------------------------- */

typedef struct {
  void *const *(*get_api)(uint32_t version);
  const char *(*get_version)(void);
} ApiBase;

Status RegisterCustomOps(void *options, const ApiBase *base) {
  char address[32] = "";
  size_t size = sizeof address;
  Status status;
  api = base->get_api(kApiVersion);
  status = API(kGetSessionConfigEntry, GetString)(options, kSessionEntry, address, &size);
  if (status) return status;
  Session *session = (Session *)(uintptr_t)strtoull(address, NULL, 10);
  if (session == NULL || session->domain) return failure("these options belong to no session");
  status = API(kCreateCustomOpDomain, Status(*)(const char *, void **))("longlive.cuda",
                                                                        &session->domain);
  for (size_t i = 0; status == NULL && i < kOperatorCount; i++)
    status = API(kCustomOpDomainAdd, Status(*)(void *, const void *))(session->domain,
                                                                      &session->operators[i].op);
  if (status) return status;
  return API(kAddCustomOpDomain, Status(*)(void *, void *))(options, session->domain);
}
