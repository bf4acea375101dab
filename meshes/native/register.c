/* All custom-call targets for programs that XLA compiles for a CPU. */
#include "host.h"

bool add_few_rows(const XLA_FFI_Api *api);
bool add_matmul(const XLA_FFI_Api *api);
bool add_norms(const XLA_FFI_Api *api);
bool add_gelu(const XLA_FFI_Api *api);
bool add_gates(const XLA_FFI_Api *api);
bool add_attention(const XLA_FFI_Api *api);
bool add_vocabulary_loss(const XLA_FFI_Api *api);
bool add_optimizer(const XLA_FFI_Api *api);
bool add_experts(const XLA_FFI_Api *api);

/* Register the targets with XLA; false if XLA does not support this interface. */
__attribute__((visibility("default"))) bool gpt_mesh_register(const XLA_FFI_Api *api) {
  const bool same = api->api_version.major_version == XLA_FFI_API_MAJOR &&
                    api->api_version.minor_version == XLA_FFI_API_MINOR;
  return same && add_few_rows(api) && add_matmul(api) && add_norms(api) && add_gelu(api) &&
         add_gates(api) && add_attention(api) && add_vocabulary_loss(api) && add_optimizer(api) && add_experts(api);
}
