"""Builds the package and, where nvcc and a torch with CUDA are, its CUDA C++ (csrc).

GSR_KERNELS_CUDA=0 leaves the CUDA C++ out, =1 insists on it, also beside a torch for CPUs; TORCH_CUDA_ARCH_LIST and
CUDA_HOME mean what they mean to torch. torch is looked up and never imported: headers and libtorch are all it takes.
What needs CUTLASS is built where its headers are, of CUTLASS_DIR or of the package nvidia-cutlass, for Hopper alone.
"""

import os
import re
import shlex
import shutil
import subprocess
import sys
import sysconfig
from functools import cache
from pathlib import Path

from setuptools import Extension, find_packages, setup
from setuptools.command.build_ext import build_ext
from setuptools.errors import CompileError

ROOT = Path(__file__).resolve().parent
ARCHITECTURES = "8.0;9.0a;10.0+PTX"
HOPPER = "90a"
CUTLASS = "4.2"
# its source, and how CUTLASS's headers want to be compiled; roots and quotients as Triton's
BY_CUTLASS = "second_product"
ITS_WAY = ["--expt-relaxed-constexpr", "-prec-div=false", "-prec-sqrt=false"]
WARNINGS = ["-Wall", "-Wextra", "-fPIC", "-fvisibility=hidden"]


def nvcc() -> str | None:
    """Return the compiler of CUDA_HOME, on PATH, or where it is usually installed."""
    homes = [os.environ.get("CUDA_HOME"), os.environ.get("CUDA_PATH")]
    folders = [f"{home}/bin" for home in homes if home] or [os.environ.get("PATH", ""), "/usr/local/cuda/bin"]
    return shutil.which("nvcc", path=os.pathsep.join(folders))


def nvcc_version() -> str:
    """Return the version, as in "13.0"; empty where nvcc does not run."""
    try:
        said = subprocess.run([nvcc(), "--version"], capture_output=True, text=True, check=True).stdout
    except (OSError, subprocess.CalledProcessError):
        return ""
    found = re.search(r"release ([\d.]+)", said)
    return found[1] if found else ""


def ninja() -> str | None:
    """Return the ninja of the build's or the environment's own packages, or of the system."""
    return shutil.which("ninja", path=os.pathsep.join([os.environ.get("PATH", ""), str(Path(sys.executable).parent)]))


def torch_folder() -> Path | None:
    """Return the folder of torch."""
    return package("torch", "include/torch/csrc/stable/library.h")


def package(name: str, file: str) -> Path | None:
    """Return the folder of a package that has a file: pip's isolation hides it from sys.path, not from sysconfig."""
    folders = [*sys.path, sysconfig.get_path("purelib"), sysconfig.get_path("platlib")]
    found = (Path(folder, name) for folder in folders)
    return next((folder for folder in found if (folder / file).is_file()), None)


@cache
def cutlass() -> Path | None:
    """Return CUTLASS's headers, of any version, None where there are none."""
    if os.environ.get("CUTLASS_DIR"):
        headers = Path(os.environ["CUTLASS_DIR"], "include")
        return headers if cutlass_version(headers) else None
    folder = package("cutlass_library", "source/include/cutlass/version.h")
    return folder and folder / "source/include"


def cutlass_version(headers: Path) -> str:
    """Return CUTLASS's version as in "4.2"; empty where these are not its headers."""
    file = headers / "cutlass/version.h"
    text = file.read_text() if file.is_file() else ""
    return ".".join(re.findall(r"#define CUTLASS_M(?:AJOR|INOR) +(\d+)", text))


def lacking(source: Path, built_for: list[str]) -> str:
    """Say why a source cannot be compiled here for architectures; empty where it can."""
    if source.stem != BY_CUTLASS:
        return ""
    if HOPPER not in built_for:
        return "wgmma is Hopper's (9.0a)"
    if not (headers := cutlass()):
        return "CUTLASS was not found (pip install nvidia-cutlass, or CUTLASS_DIR)"
    # hopper.cuh declares what that version defines
    found = cutlass_version(headers)
    return "" if found == CUTLASS else f"CUTLASS must be {CUTLASS}, {headers} is {found}"


def torch_version(torch: Path) -> tuple[tuple[int, int], bool]:
    """Return (major, minor), and whether that torch is one with CUDA."""
    version = torch / "version.py"
    text = version.read_text() if version.is_file() else ""
    found = re.search(r"__version__ = '(\d+)\.(\d+)", text)
    # one that does not say its version is too old for us
    major, minor = found.groups() if found else (0, 0)
    return (int(major), int(minor)), bool(re.search(r"^cuda\b.*= '", text, re.MULTILINE))


def architectures() -> list[str]:
    """Return them as in "90a", or "100+PTX" for code that later GPUs compile when they load it.

    Raises ValueError for an entry that is neither.
    """
    listed = os.environ.get("TORCH_CUDA_ARCH_LIST", "").strip() or ARCHITECTURES
    found = [entry for entry in re.split(r"[\s;,]+", listed) if entry]
    for entry in found:
        if not re.fullmatch(r"\d+\.\d[af]?(\+PTX)?", entry):
            raise ValueError(f"TORCH_CUDA_ARCH_LIST must hold versions as in {ARCHITECTURES!r}, got {entry!r}")
    return [entry.replace(".", "") for entry in found]


def asked() -> bool | None:
    """Return the choice of GSR_KERNELS_CUDA; None where it is not set."""
    value = os.environ.get("GSR_KERNELS_CUDA", "")
    if value not in ("", "0", "1"):
        raise SystemExit(f"GSR_KERNELS_CUDA must be 0 or 1, got {value!r}")
    return value == "1" if value else None


def obstacle() -> str:
    """Say why the CUDA C++ cannot be built here."""
    if sys.platform != "linux":
        return "it is built on Linux alone"
    if nvcc() is None:
        return "nvcc was not found (PATH, CUDA_HOME)"
    if not nvcc_version():
        return f"{nvcc()} --version names no release: it does not run here, or is no nvcc"
    torch = torch_folder()
    if torch is None or torch_version(torch)[0] < (2, 10):
        return "torch >= 2.10 was not found: install it first"
    if ninja() is None:
        return "ninja was not found: pip install ninja, or leave pip's build isolation on"
    try:
        architectures()
    except ValueError as error:
        return str(error)
    return ""


def wanted() -> bool:
    """Tell whether to build the CUDA C++, and print a line that says why not."""
    reason = "GSR_KERNELS_CUDA=0" if asked() is False else obstacle()
    if reason and asked():
        raise SystemExit(f"GSR_KERNELS_CUDA=1, but {reason}")
    if not reason and not asked() and not torch_version(torch_folder())[1]:
        reason = "torch here is a build for CPUs; GSR_KERNELS_CUDA=1 builds it all the same"
    if reason:
        print(f"gsr-kernels is built without its CUDA C++: {reason}")
    return not reason


def codes(names: list[str]) -> list[str]:
    """Return nvcc's flags for architectures."""
    flags = []
    for architecture in names:
        number = architecture.removesuffix("+PTX")
        kinds = ["sm", "compute"] if number != architecture else ["sm"]
        flags += [f"-gencode=arch=compute_{number},code={kind}_{number}" for kind in kinds]
    return flags


def compile_cuda(flags: list[str]) -> list[str]:
    """Return nvcc's command, but for the file's name."""
    return [nvcc(), "-std=c++20", "-O3", f"-I{ROOT / 'csrc'}", "-Xcompiler", ",".join(WARNINGS), *flags]


def compile_kernels(source: Path, names: list[str]) -> list[str]:
    """Return nvcc's command for a source with kernels, which has it say what each of them takes."""
    own = ["-isystem", str(cutlass()), *ITS_WAY] if source.stem == BY_CUTLASS else []
    return compile_cuda(["-lineinfo", "-Xptxas=-v", *codes(names), *own])


def command(source: Path) -> list[str]:
    """Return the command that compiles a source, but for the file's name."""
    if source.suffix == ".cu":
        return compile_kernels(source, [HOPPER] if source.stem == BY_CUTLASS else architectures())
    if source.stem == "operators":
        # the oldest torch that is supported: what is built for it, later ones load
        target = ["-DTORCH_TARGET_VERSION=0x020a000000000000", "-DUSE_CUDA"]
        target += ["-DWITH_CUTLASS"] * (ROOT / f"csrc/{BY_CUTLASS}.cu" in sources())
        return compile_cuda([*target, "-isystem", str(torch_folder() / "include")])
    found = ".".join(map(str, torch_version(torch_folder())[0]))
    facts = {"ARCHITECTURES": " ".join(architectures()), "NVCC": nvcc_version(), "TORCH": found}
    include = f"-isystem{sysconfig.get_path('include')}"
    return ["c++", "-std=c++20", "-O3", *WARNINGS, include, *(f'-D{name}="{facts[name]}"' for name in facts)]


def linker_cuda() -> list[str]:
    """Return nvcc as the linker of operators; libtorch.so itself needs libtorch_cuda.so where there is one."""
    return [nvcc(), "-cudart=static", f"-L{torch_folder() / 'lib'}", "-Xlinker", "--no-as-needed"]


def shell(words: list[str]) -> str:
    """Return a command as ninja reads it, which hands it to a shell."""
    return shlex.join(words).replace("$", "$$")


def path(name: Path) -> str:
    """Return a path as ninja reads it."""
    return re.sub(r"([$ :])", r"$\1", str(name))


class Build(build_ext):
    """Build every extension by ninja."""

    def get_ext_filename(self, name: str) -> str:
        """Return a name without Python's version for the operators, which know nothing of Python."""
        return name.replace(".", os.sep) + ".so" if name.endswith("operators") else super().get_ext_filename(name)

    def build_extension(self, extension: Extension) -> None:
        folder = Path(self.build_temp, extension.name).resolve()
        target = Path(self.get_ext_fullpath(extension.name)).resolve()
        for parent in (folder, target.parent):
            parent.mkdir(parents=True, exist_ok=True)
        lines, objects = [], []
        for source in map(Path, extension.sources):
            objects.append(f"{source.stem}.o")
            lines += [f"rule {source.stem}", f"  command = {shell(command(source))} -MD -MF $out.d -c $in -o $out",
                      "  depfile = $out.d", f"build {objects[-1]}: {source.stem} {path(ROOT / source)}"]  # fmt: skip
        linker = linker_cuda() if extension.libraries else ["c++"]
        libraries = [f"-l{library}" for library in extension.libraries]
        lines += ["rule link", f"  command = {shell(linker)} -shared $in -o $out {' '.join(libraries)}",
                  f"build {path(target)}: link {' '.join(objects)}", ""]  # fmt: skip
        (folder / "build.ninja").write_text("\n".join(lines))
        if subprocess.call([ninja(), "-C", folder]):
            raise CompileError(f"{extension.name} was not built: ninja's output above says why")


def sources() -> list[Path]:
    """Return the sources with kernels that can be compiled here."""
    return [source for source in sorted(ROOT.glob("csrc/*.cu")) if not lacking(source, architectures())]


def extensions() -> list[Extension]:
    """Return the operators and the facts of their build. Broken ones stop the installation only if asked for."""
    if not wanted():
        return []
    room, optional = "gsr_kernels.backends.cuda", not asked()
    if reason := lacking(Path(f"{BY_CUTLASS}.cu"), architectures()):
        print(f"gsr-kernels is built without {BY_CUTLASS}.cu: {reason}")
    kernels = [str(source.relative_to(ROOT)) for source in sources()]
    return [
        Extension(f"{room}.operators", [*kernels, "csrc/operators.cpp"], libraries=["torch"], optional=optional),
        Extension(f"{room}.build", ["csrc/build.cpp"], optional=optional),
    ]


if __name__ == "__main__":
    setup(
        packages=find_packages(include=["gsr_kernels*"]),
        ext_modules=extensions(),
        cmdclass={"build_ext": Build},
    )
