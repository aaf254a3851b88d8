"""The operators, once per way of computing them: a package a backend, a file an operator, the same names in each."""
