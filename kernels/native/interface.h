// The C interface. Every function that can fail returns 0, or -1 with the reason in `accel_error()`.
// Arrays belong to the caller and must live as long as what they were given to.
#pragma once
#include "model.h"
#include "parts.h"

#define ACCEL_API extern "C" __attribute__((visibility("default")))

ACCEL_API const char *accel_error();
ACCEL_API const char *accel_instructions(); // null where the processor has none that fit

// Packs `[outputs][inputs]` numbers as INT8 or INT4 with a scale per output; errors in INT4 are weighed by the
// `importance` of their inputs, null for all alike. `weight` has room for accel_packed_bytes(packed, outputs, inputs),
// `scales` for outputs rounded up to a panel.
ACCEL_API int64_t accel_packed_bytes(int32_t packed, int32_t outputs, int32_t inputs);
ACCEL_API int accel_pack(const void *numbers, int32_t dtype, int32_t packed, int32_t outputs, int32_t inputs,
                         const float *importance, uint8_t *weight, float *scales);
// Lays `[outputs][inputs]` numbers out for products without rounding them; room as for accel_packed_bytes(dtype, ...).
ACCEL_API int accel_lay_out(const void *numbers, int32_t dtype, int32_t outputs, int32_t inputs, void *weight);

ACCEL_API accel::Parts *accel_create_parts(int32_t threads);
// out[tokens][outputs] = in[tokens][inputs] @ weight.T + bias
ACCEL_API int accel_linear(accel::Parts *parts, const accel::Linear *layer, const float *in, int64_t tokens,
                           float *out);
// `lanes` are `count` of accel::Lane; see accel::Parts::attend.
ACCEL_API int accel_attend(accel::Parts *parts, const accel::Shape *shape, const accel::Layer *layer,
                           const accel::Cache *cache, int32_t count, const accel::Lane *lanes, int64_t tokens,
                           float *qkv, float *out);
ACCEL_API void accel_destroy_parts(accel::Parts *parts);

ACCEL_API accel::Model *accel_create(const accel::Shape *shape, int32_t threads);
ACCEL_API int accel_set_layer(accel::Model *model, int32_t index, const accel::Layer *layer);
ACCEL_API int accel_set_ends(accel::Model *model, const accel::Ends *ends);
ACCEL_API int accel_step(accel::Model *model, int32_t count, const int32_t *tokens, const int32_t *rows,
                         const int32_t *columns, int32_t wanted_count, const int32_t *wanted, float *logits);
ACCEL_API int accel_copy_row(accel::Model *model, int32_t source, int32_t target, int32_t length);
ACCEL_API void accel_destroy(accel::Model *model);
