import pytest

from bench.gpu import nvcc

PTXAS = """
ptxas info    : Compiling entry function '_ZN3gsr1fILi4EEEvi' for 'sm_90a'
ptxas info    : Function properties for _ZN3gsr1fILi4EEEvi
    8 bytes stack frame, 4 bytes spill stores, 12 bytes spill loads
ptxas info    : Used 62 registers, used 1 barriers, 1168 bytes smem
ptxas info    : Compiling entry function '_ZN3gsr1gEPf' for 'sm_90a'
    0 bytes stack frame, 0 bytes spill stores, 0 bytes spill loads
ptxas info    : Used 31 registers
"""


SOURCES = {source.name: source for source in nvcc.sources()}
BY_CUTLASS = "second_product.cu"


def test_every_source_is_looked_at(monkeypatch, capsys):
    asked = []
    monkeypatch.setattr(nvcc, "compiled", lambda source, architecture: asked.append(source.name) or (PTXAS, ""))
    monkeypatch.setitem(nvcc.setup()["lacking"].__globals__, "cutlass", lambda: None)
    assert nvcc.main([]) == 0
    assert sorted(asked) == ["complete_rows.cu", "rescale.cu", "small_svd.cu"]
    assert f"{BY_CUTLASS} for sm_90a is left out: CUTLASS was not found (pip install" in capsys.readouterr().out
    assert nvcc.main([BY_CUTLASS, "--sm", "80"]) == 0 and "wgmma is Hopper's" in capsys.readouterr().out


def test_cutlass_is_found_where_it_lies(monkeypatch, tmp_path):
    cutlass, source = nvcc.setup()["cutlass"], SOURCES[BY_CUTLASS]
    # what was found before the test, and what it finds, are forgotten
    cutlass.cache_clear()
    monkeypatch.setitem(nvcc.setup()["lacking"].__globals__, "cutlass", cutlass.__wrapped__)
    monkeypatch.setenv("CUTLASS_DIR", str(tmp_path))
    assert "CUTLASS was not found" in nvcc.setup()["lacking"](source, ["80", "90a"])
    header = tmp_path / "include" / "cutlass" / "version.h"
    header.parent.mkdir(parents=True)
    header.write_text("#define CUTLASS_MAJOR 3\n#define CUTLASS_MINOR 9\n#define CUTLASS_PATCH 1\n")
    assert f"CUTLASS must be 4.2, {header.parents[1]} is 3.9" in nvcc.setup()["lacking"](source, ["80", "90a"])
    header.write_text("#define CUTLASS_MAJOR 4\n#define CUTLASS_MINOR 2\n")
    assert nvcc.setup()["lacking"](source, ["80", "90a"]) == ""
    monkeypatch.setitem(nvcc.setup()["lacking"].__globals__, "nvcc", lambda: "nvcc")
    include = str(tmp_path / "include")
    assert include in nvcc.setup()["compile_kernels"](source, ["90a"])
    assert include not in nvcc.setup()["compile_kernels"](SOURCES["rescale.cu"], ["90a"])


def test_what_ptxas_says():
    first, second = nvcc.rows(PTXAS, "90a")
    assert first["registers"] == 62 and first["stack"] == 8 and first["spilled"] == 16
    assert first["static shared"] == 1168 and first["kernel"] == "f<4>"
    assert second["registers"] == 31 and second["spilled"] == second["static shared"] == 0


def test_kernels_of_cutlass_have_our_names():
    whole = "_ZN7cutlass13device_kernelINS_4gemm6kernel13GemmUniversalI{}EEEvNT_6ParamsE"
    assert nvcc.readable(whole.format("fSK_fSK_N3gsr6UpdateES13_")) == "second_product_adamw"


def test_no_kernel_hides_another():
    lines = PTXAS.strip().splitlines()
    first, second = lines[:4], lines[4:]
    spilling = "\n".join(second).replace("0 bytes spill stores", "72 bytes spill stores")
    for properties in (first[1:3], first[1:3][::-1]):
        # the first of them has its registers told before and after the rest
        for body in ([*properties, first[3]], [first[3], *properties]):
            found = nvcc.rows("\n".join([first[0], *body, spilling]), "90a")
            assert [row["spilled"] for row in found] == [16, 72]
    with pytest.raises(ValueError, match="no registers of _ZN3gsr1fILi4EEEvi"):
        nvcc.rows("\n".join([*first[:3], *second]), "90a")


def test_a_spill_and_a_warning_fail(monkeypatch, capsys):
    monkeypatch.setattr(nvcc, "compiled", lambda source, architecture: (PTXAS, ""))
    assert nvcc.main(["small_svd.cu"]) == 0
    spilling = PTXAS.replace("12 bytes spill loads", "64 bytes spill loads")
    monkeypatch.setattr(nvcc, "compiled", lambda source, architecture: (spilling, ""))
    assert nvcc.main(["small_svd.cu"]) == 1 and "f<4> spills 68 bytes" in capsys.readouterr().out
    monkeypatch.setattr(nvcc, "compiled", lambda source, architecture: (PTXAS, f"{source.name}: warning"))
    assert nvcc.main(["small_svd.cu"]) == 1 and "small_svd.cu: warning" in capsys.readouterr().out
