// The importable half: `import longlive_optimized._C` registers the operators; build_info() says how they were built.
#include <cuda_runtime.h>
#include <pybind11/pybind11.h>

PYBIND11_MODULE(_C, m) {
  m.def("build_info", [] {
    pybind11::dict d;
    d["cuda"] = CUDART_VERSION;
    return d;
  });
}
