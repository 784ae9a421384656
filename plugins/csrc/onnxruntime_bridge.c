/* Kernel nodes for ONNX Runtime: every node's work is done by three functions of the program that
 * loads this library. What is used of ONNX Runtime's C interface, which only ever grows, is
 * declared here by position, so that it compiles without ONNX Runtime's headers.
 */
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>

enum { kApiVersion = 18, kMaxRank = 8, kMaxInputs = 24, kMaxOutputs = 8, kMessageBytes = 1024 };

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

/* Each writes a message and returns non-zero, or does its work and returns zero. */
typedef int (*CreateFunction)(const char *spec, int64_t *kernel, char *message);
typedef int (*ShapesFunction)(int64_t kernel, int64_t inputs, const Tensor *input,
                              int64_t outputs, Tensor *output, char *message);
typedef int (*RunFunction)(int64_t kernel, int64_t inputs, const Tensor *input, int64_t outputs,
                           const Tensor *output, char *message);

typedef void *Status;
typedef struct {
  int64_t id;
  char message[kMessageBytes]; /* why it could not be made; empty if it was */
} Kernel;

static CreateFunction create_function;
static ShapesFunction shapes_function;
static RunFunction run_function;
static int on_device;
static void *const *api;

#define API(position, type) ((type)api[position])

void longlive_bridge_set(CreateFunction create, ShapesFunction shapes, RunFunction run) {
  create_function = create;
  shapes_function = shapes;
  run_function = run;
}

void longlive_bridge_use_device(int device) { on_device = device; }

static Status failure(const char *message) {
  return API(kCreateStatus, Status(*)(int, const char *))(kGenericError, message);
}

typedef Status (*GetString)(const void *, const char *, char *, size_t *);

static void *create_kernel(const void *op, const void *unused, const void *info) {
  size_t size = 0;
  Kernel *kernel = calloc(1, sizeof *kernel);
  (void)op, (void)unused;
  API(kKernelInfoGetAttributeString, GetString)(info, "spec", NULL, &size);
  char *spec = calloc(size + 1, 1);
  API(kKernelInfoGetAttributeString, GetString)(info, "spec", spec, &size);
  if (create_function == NULL)
    snprintf(kernel->message, kMessageBytes, "no program has registered itself");
  else
    create_function(spec, &kernel->id, kernel->message);
  free(spec);
  return kernel;
}

static void destroy_kernel(void *kernel) { free(kernel); }

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
  Tensor input[kMaxInputs], output[kMaxOutputs];
  size_t inputs, outputs;
  char message[kMessageBytes] = "";
  Status status;
  if (kernel->message[0]) return failure(kernel->message);
  API(kKernelContextGetInputCount, Status(*)(const void *, size_t *))(context, &inputs);
  API(kKernelContextGetOutputCount, Status(*)(const void *, size_t *))(context, &outputs);
  if (inputs > kMaxInputs || outputs > kMaxOutputs) return failure("a kernel has too many tensors");
  for (size_t i = 0; i < inputs; i++)
    if ((status = read_input(context, i, &input[i]))) return status;
  if (shapes_function(kernel->id, (int64_t)inputs, input, (int64_t)outputs, output, message))
    return failure(message);
  for (size_t i = 0; i < outputs; i++)
    if ((status = make_output(context, i, &output[i]))) return status;
  if (run_function(kernel->id, (int64_t)inputs, input, (int64_t)outputs, output, message))
    return failure(message);
  return NULL;
}

static Status create_kernel_v2(const void *op, const void *unused, const void *info, void **made) {
  *made = create_kernel(op, unused, info);
  return NULL;
}

static const char *cuda_provider(const void *op) { return (void)op, "CUDAExecutionProvider"; }
static const char *cpu_provider(const void *op) { return (void)op, NULL; }
static int any_type(const void *op, size_t index) { return (void)op, (void)index, kAnyType; }
static int variadic(const void *op, size_t index) { return (void)op, (void)index, kVariadic; }
static int default_memory(const void *op, size_t index) { return (void)op, (void)index, 0; }
static int required(const void *op, size_t index) { return (void)op, (void)index, kRequired; }
static size_t one_group(const void *op) { return (void)op, 1; }
static size_t two_outputs(const void *op) { return (void)op, 2; }
static int at_least_one(const void *op) { return (void)op, 1; }
static int of_many_types(const void *op) { return (void)op, 0; }
static int of_one_type(const void *op) { return (void)op, 1; }
static int first_version(const void *op) { return (void)op, 1; }
static int last_version(const void *op) { return (void)op, 0x7fffffff; }

/* Members in the order of ONNX Runtime's struct of this version. */
typedef struct {
  uint32_t version;
  void *create_kernel, *get_name, *get_provider, *get_input_type, *get_input_count;
  void *get_output_type, *get_output_count, *compute, *destroy, *get_input_kind, *get_output_kind;
  void *get_input_memory, *least_inputs, *inputs_alike, *least_outputs, *outputs_alike;
  void *create_kernel_v2, *compute_v2, *infer_shapes, *get_start_version, *get_end_version;
  void *get_in_place, *release_in_place, *get_aliases, *release_aliases;
} CustomOp;

#define OPERATOR(NAME, TYPE)                                                                  \
  static const char *name_##TYPE(const void *op) { return (void)op, NAME; }                   \
  static int type_##TYPE(const void *op, size_t index) { return (void)op, (void)index, TYPE; }

OPERATOR("KernelFloat", kFloat)
OPERATOR("KernelUInt8", kUInt8)
OPERATOR("KernelInt8", kInt8)
OPERATOR("KernelFloat16", kFloat16)
OPERATOR("KernelBFloat16", kBFloat16)
OPERATOR("KernelFloat8E4M3", kFloat8E4M3)

/* Two outputs: the first in a half, the second in 8 bits. */
#define TWO_TYPES(NAME, TYPE)                                                                 \
  static const char *name_##TYPE##_and_8(const void *op) { return (void)op, NAME; }           \
  static int type_##TYPE##_and_8(const void *op, size_t index) {                              \
    return (void)op, index ? kFloat8E4M3 : TYPE;                                              \
  }

TWO_TYPES("KernelFloatAndFloat8E4M3", kFloat)
TWO_TYPES("KernelFloat16AndFloat8E4M3", kFloat16)
TWO_TYPES("KernelBFloat16AndFloat8E4M3", kBFloat16)

#define ENTRY(TYPE, PROVIDER, OUTPUTS, KIND)                                                  \
  {                                                                                           \
    .version = kApiVersion, .get_name = (void *)name_##TYPE, .get_provider = (void *)PROVIDER, \
    .create_kernel = (void *)create_kernel, .create_kernel_v2 = (void *)create_kernel_v2,     \
    .compute_v2 = (void *)run_kernel, .destroy = (void *)destroy_kernel,                      \
    .get_input_type = (void *)any_type, .get_output_type = (void *)type_##TYPE,               \
    .get_input_count = (void *)one_group, .get_output_count = (void *)OUTPUTS,                \
    .get_input_kind = (void *)variadic, .get_output_kind = (void *)KIND,                      \
    .get_input_memory = (void *)default_memory, .least_inputs = (void *)at_least_one,         \
    .least_outputs = (void *)at_least_one, .inputs_alike = (void *)of_many_types,             \
    .outputs_alike = (void *)of_one_type, .get_start_version = (void *)first_version,         \
    .get_end_version = (void *)last_version                                                   \
  }
#define SAME(TYPE, PROVIDER) ENTRY(TYPE, PROVIDER, one_group, variadic)
#define MIXED(TYPE, PROVIDER) ENTRY(TYPE##_and_8, PROVIDER, two_outputs, required)
#define ENTRIES(PROVIDER)                                                                     \
  {SAME(kFloat, PROVIDER),    SAME(kUInt8, PROVIDER),    SAME(kInt8, PROVIDER),               \
   SAME(kFloat16, PROVIDER),  SAME(kBFloat16, PROVIDER), SAME(kFloat8E4M3, PROVIDER),         \
   MIXED(kFloat, PROVIDER),   MIXED(kFloat16, PROVIDER), MIXED(kBFloat16, PROVIDER)}

static const CustomOp cuda_operators[] = ENTRIES(cuda_provider);
static const CustomOp cpu_operators[] = ENTRIES(cpu_provider);

typedef struct {
  void *const *(*get_api)(uint32_t version);
  const char *(*get_version)(void);
} ApiBase;

Status RegisterCustomOps(void *options, const ApiBase *base) {
  const CustomOp *operators = on_device ? cuda_operators : cpu_operators;
  void *domain;
  Status status;
  api = base->get_api(kApiVersion);
  status = API(kCreateCustomOpDomain, Status(*)(const char *, void **))("longlive.cuda", &domain);
  for (size_t i = 0; status == NULL && i < sizeof cpu_operators / sizeof cpu_operators[0]; i++)
    status = API(kCustomOpDomainAdd, Status(*)(void *, const void *))(domain, &operators[i]);
  if (status) return status;
  return API(kAddCustomOpDomain, Status(*)(void *, void *))(options, domain);
}
