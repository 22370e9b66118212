"""What holds for every test."""

import os

# oneDNN's AMX kernels end the process ("illegal instruction") on some virtual machines that announce AMX; see
# docs/decisions/0014-amx.md. Read when TensorFlow is first loaded, hence here.
os.environ.setdefault("ONEDNN_MAX_CPU_ISA", "AVX10_1_512")
