// Lets torch believe that there is one CUDA device, so that tensors without storage can seem to lie on it.
//
// A device guard that does nothing is registered for CUDA, and hooks that say that the device is there. Autograd asks
// both; no kernel ever runs. Built by the test, and preloaded: torch asks for the hooks once, early. A CUDA build of torch
// has hooks and a guard of its own, which ask the driver: its hooks are skipped, as these have a higher priority, and its
// guard, registered when libtorch_cuda is loaded, is replaced by stand_in_for_cuda(), which is called after that.
#include <ATen/detail/CUDAHooksInterface.h>
#include <c10/core/impl/DeviceGuardImplInterface.h>

namespace {

const c10::Device DEVICE(c10::DeviceType::CUDA, 0);

struct Guard : public c10::impl::NoOpDeviceGuardImpl<c10::DeviceType::CUDA> {
  c10::Device getDevice() const override { return DEVICE; }
  c10::Device exchangeDevice(c10::Device) const override { return DEVICE; }
  c10::Stream getStream(c10::Device) const noexcept override { return c10::Stream(c10::Stream::DEFAULT, DEVICE); }
  c10::Stream getDefaultStream(c10::Device) const override { return c10::Stream(c10::Stream::DEFAULT, DEVICE); }
  void recordDataPtrOnStream(const c10::DataPtr&, const c10::Stream&) const override {}
};

struct CUDAHooks : public at::CUDAHooksInterface {
  explicit CUDAHooks(at::CUDAHooksArgs) {}
  bool hasCUDA() const override { return true; }
  bool isAvailable() const override { return true; }
  bool isBuilt() const override { return true; }
  void init() const override {}
  bool hasPrimaryContext(c10::DeviceIndex) const override { return false; }
  c10::DeviceIndex deviceCount() const override { return 1; }
  c10::DeviceIndex getCurrentDevice() const override { return 0; }
  // A CUDA build asks for it before it chooses a kernel of attention. Not all versions of torch have it to override.
  long versionRuntimeCuDNN() const { return 0; }
};
using at::CUDAHooksRegistry;
using at::RegistererCUDAHooksRegistry;
C10_REGISTER_CLASS_WITH_PRIORITY(CUDAHooksRegistry, CUDAHooks, c10::REGISTRY_PREFERRED, CUDAHooks);

}  // namespace

extern "C" void stand_in_for_cuda() { c10::impl::DeviceGuardImplRegistrar(c10::DeviceType::CUDA, new Guard()); }
