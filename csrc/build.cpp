// what is to be known of a build before its operators are loaded
#include <Python.h>

PyMODINIT_FUNC PyInit_build() {
  static PyModuleDef definition{};
  definition.m_base = PyModuleDef_HEAD_INIT;
  definition.m_name = "build";
  definition.m_doc = "What the CUDA C++ beside this was built with.";
  PyObject* module = PyModule_Create(&definition);
  if (module &&
      (PyModule_AddStringConstant(module, "architectures", ARCHITECTURES) ||
       PyModule_AddStringConstant(module, "nvcc", NVCC) || PyModule_AddStringConstant(module, "torch", TORCH))) {
    Py_DECREF(module);
    return nullptr;
  }
  return module;
}
