"""Files that are damaged, unusual or hostile: read where they can be, else refused by name and in little memory."""

import gzip
import io
import json
import struct
import tracemalloc
import zipfile

import numpy as np
import plyfile
import pytest
import torch
import zstandard
from PIL import Image
from polyfield.geometry.gaussian_differences import largest_differences
from polyfield.geometry.splat_io import SplatError, load_gaussians, save_gaussians
from polyfield.geometry.transforms import quaternion_to_matrix

from tests.splat_samples import SUFFIXES, bounds, sample, within

MESSAGE = r"load_gaussians: .*expected .*, got .*; "


def refused(path, match="", **options):
    """The path is named, what was expected and found is said, and little memory is taken."""
    tracemalloc.start()
    try:
        with pytest.raises(SplatError, match=MESSAGE) as error:
            load_gaussians(path, **options)
        assert tracemalloc.get_traced_memory()[1] < 50e6
    finally:
        tracemalloc.stop()
    assert str(path.name) in str(error.value)
    assert match in str(error.value), error.value


@pytest.fixture(scope="module")
def gaussians():
    return sample(50, degree=1)


def columns(gaussians, dtype="<f4"):
    """name -> values, as an INRIA file has them."""
    g, rest = gaussians, gaussians.sh.shape[1] - 1
    found = {name: g.means[:, i] for i, name in enumerate("xyz")}
    found |= {f"f_dc_{i}": g.sh[:, 0, i] for i in range(3)}
    found |= {f"f_rest_{c * rest + k}": g.sh[:, 1 + k, c] for c in range(3) for k in range(rest)}
    found |= {"opacity": g.logit_opacities, **{f"scale_{i}": g.log_scales[:, i] for i in range(3)}}
    found |= {f"rot_{i}": g.quats[:, i] for i in range(4)}
    return {name: values.numpy().astype(dtype) for name, values in found.items()}


def write_ply(path, named, *, text=False, byte_order="<", more=()):
    rows = np.empty(len(next(iter(named.values()))), [(n, v.dtype.str) for n, v in named.items()])
    for name, values in named.items():
        rows[name] = values
    elements = [plyfile.PlyElement.describe(rows, "vertex"), *more]
    plyfile.PlyData(elements, text=text, byte_order=byte_order).write(str(path))
    return path


class TestPly:
    @pytest.mark.parametrize("layout", [{"text": True}, {"byte_order": ">"}, {"byte_order": "<"}])
    @pytest.mark.parametrize("dtype", ["f4", "f8"])
    def test_text_either_byte_order_and_double(self, tmp_path, gaussians, layout, dtype):
        path = write_ply(tmp_path / "a.ply", columns(gaussians, dtype), **layout)
        assert within(largest_differences(gaussians, load_gaussians(path)), bounds(".glb", gaussians))

    def test_reordered_and_extra_columns_and_elements(self, tmp_path, gaussians):
        named = columns(gaussians)
        shuffled = {n: named[n] for n in np.random.default_rng(0).permutation(list(named)).tolist()}
        shuffled["filter_3D"], shuffled["label"] = named["x"] * 7, (named["x"] * 0).astype("u1")
        faces = np.array([([0, 1, 2],), ([2, 1, 0, 4],)], dtype=[("vertex_indices", "O")])
        more = [plyfile.PlyElement.describe(faces, "face")]
        back = load_gaussians(write_ply(tmp_path / "a.ply", shuffled, more=more))
        assert within(largest_differences(gaussians, back), bounds(".ply", gaussians))

    @pytest.mark.parametrize("name", ["x", "z", "opacity", "scale_1", "rot_0", "f_dc_2", "f_rest_4"])
    def test_missing_columns(self, tmp_path, gaussians, name):
        named = columns(gaussians)
        del named[name]
        refused(write_ply(tmp_path / "a.ply", named), "f_rest_*" if "rest" in name else name)

    def test_a_gap_in_the_bands(self, tmp_path, gaussians):
        named = columns(gaussians)
        named["f_rest_9"] = named.pop("f_rest_8")
        refused(write_ply(tmp_path / "a.ply", named), "none named f_rest_8")

    def test_columns_twice(self, tmp_path, gaussians):
        path = write_ply(tmp_path / "a.ply", columns(gaussians))
        path.write_bytes(path.read_bytes().replace(b"property float y\n", b"property float x\n"))
        refused(path, "x")

    def test_lists_where_numbers_belong(self, tmp_path, gaussians):
        named = columns(gaussians)
        named["opacity"] = np.array([[1.0, 2.0]] * len(gaussians) + [0], dtype=object)[:-1]
        path = tmp_path / "a.ply"
        rows = np.empty(len(gaussians), [(n, "O" if n == "opacity" else "f4") for n in named])
        for name, values in named.items():
            rows[name] = values
        element = plyfile.PlyElement.describe(rows, "vertex", val_types={"opacity": "f4"})
        plyfile.PlyData([element]).write(str(path))
        refused(path, "lists")

    def test_colours_of_8_bits(self, tmp_path, gaussians):
        named = {n: v for n, v in columns(gaussians).items() if not n.startswith("f_")}
        rgb = np.random.default_rng(0).integers(0, 256, (3, len(gaussians))).astype("u1")
        named |= dict(zip(("red", "green", "blue"), rgb, strict=True))
        back = load_gaussians(write_ply(tmp_path / "a.ply", named))
        assert back.degree == 0
        torch.testing.assert_close(back.sh[:, 0] * 0.28209479 + 0.5, torch.tensor(rgb.T / 255, dtype=torch.float32))

    @pytest.mark.parametrize("name", ["x", "scale_0", "rot_3", "opacity", "f_dc_0", "f_rest_2"])
    def test_nan_and_infinity(self, tmp_path, gaussians, name):
        named = columns(gaussians, "f8")
        named[name][[3, 7]] = np.nan, 1e300 if name != "opacity" else np.nan
        path = write_ply(tmp_path / "a.ply", named)
        refused(path, "2 with NaN or infinite")
        back = load_gaussians(path, drop_invalid=True)
        keep = [i for i in range(len(gaussians)) if i not in (3, 7)]
        assert within(largest_differences(gaussians[torch.tensor(keep)], back), bounds(".glb", gaussians))

    def test_infinite_logits_and_scales_of_zero_are_numbers(self, tmp_path, gaussians):
        """Opacities 0 and 1 and flat Gaussians, as other programs write them."""
        named = columns(gaussians)
        named["opacity"][:2], named["scale_2"][:2] = (-np.inf, np.inf), -np.inf
        back = load_gaussians(write_ply(tmp_path / "a.ply", named))
        assert back.opacities[:2].tolist() == pytest.approx([0, 1], abs=1e-6)
        assert bool((back.scales[:2, 2] < 1e-30).all()) and bool(back.log_scales.isfinite().all())

    def test_quaternions_of_length_zero(self, tmp_path, gaussians):
        named = columns(gaussians)
        for i in range(4):
            named[f"rot_{i}"][5] = 0
        path = write_ply(tmp_path / "a.ply", named)
        refused(path, "1 with quaternions of length zero; the first is number 5")
        assert len(load_gaussians(path, drop_invalid=True)) == len(gaussians) - 1

    def test_nothing_valid(self, tmp_path, gaussians):
        path = write_ply(tmp_path / "a.ply", {n: v * np.nan for n, v in columns(gaussians).items()})
        refused(path, "50 with NaN", drop_invalid=True)

    def test_no_gaussians(self, tmp_path, gaussians):
        refused(
            write_ply(tmp_path / "a.ply", {n: v[:0] for n, v in columns(gaussians).items()}), "at least one Gaussian"
        )

    @pytest.mark.parametrize("text", [False, True])
    @pytest.mark.parametrize("count", [51, 10**7, 10**15])
    def test_headers_that_promise_more(self, tmp_path, gaussians, text, count):
        path = write_ply(tmp_path / "a.ply", columns(gaussians), text=text)
        path.write_bytes(path.read_bytes().replace(b"vertex 50\n", b"vertex %d\n" % count))
        refused(path)

    @pytest.mark.parametrize("text", [False, True])
    def test_another_element_that_promises_more(self, tmp_path, gaussians, text):
        path = write_ply(tmp_path / "a.ply", columns(gaussians), text=text)
        claim = b"element camera 100000000\nproperty double a\nend_header"
        path.write_bytes(path.read_bytes().replace(b"end_header", claim))
        refused(path, "camera 100000000")

    @pytest.mark.parametrize("share", [0, 0.001, 0.01, 0.5, 0.999])
    @pytest.mark.parametrize("text", [False, True])
    def test_cut_short(self, tmp_path, gaussians, share, text):
        path = write_ply(tmp_path / "a.ply", columns(gaussians), text=text)
        data = path.read_bytes()
        path.write_bytes(data[: int(share * len(data)) - (share == 0.999)])
        refused(path)

    @pytest.mark.parametrize(
        ("old", "new", "match"),
        [
            (b"float x", b"quaternion x", "types"),
            (b"element vertex", b"element points", "an element 'vertex'"),
            (b"vertex 50", b"vertex -1", "-1"),
            (b"vertex 50", b"vertex many", "many"),
            (b"binary_little_endian", b"binary_middle_endian", "PLY"),
            (b"ply", b"PLY", "PLY header"),
        ],
    )
    def test_damaged_headers(self, tmp_path, gaussians, old, new, match):
        path = write_ply(tmp_path / "a.ply", columns(gaussians))
        path.write_bytes(path.read_bytes().replace(old, new, 1))
        refused(path, match)

    def test_max_memory(self, tmp_path, gaussians):
        path = write_ply(tmp_path / "a.ply", columns(gaussians))
        refused(path, "max_memory", max_memory=50 * 92 - 1)
        assert len(load_gaussians(path, max_memory=50 * 92)) == 50


class TestCompressedPly:
    def rewritten(self, path, change):
        """The elements of a file, changed."""
        elements = {e.name: np.array(e.data) for e in plyfile.PlyData.read(str(path)).elements}
        change(elements)
        plyfile.PlyData([plyfile.PlyElement.describe(v, n) for n, v in elements.items()]).write(str(path))
        return path

    def test_without_bounds_of_colours(self, tmp_path, gaussians):
        """As SuperSplat 1 wrote it: 12 bounds, colours over [0, 1]. Found by the header, whatever the name."""
        save_gaussians(tmp_path / "a.compressed.ply", gaussians)

        def change(elements):
            chunk = elements["chunk"]
            elements["chunk"] = chunk[[n for n in chunk.dtype.names if n[-2:] not in ("_r", "_g", "_b")]].astype(
                [(n, "f4") for n in chunk.dtype.names if n[-2:] not in ("_r", "_g", "_b")]
            )
            elements["vertex"]["packed_color"] = 0xFF800040

        path = self.rewritten(tmp_path / "a.compressed.ply", change)
        back = load_gaussians(path.rename(tmp_path / "b.ply"))
        wanted = torch.tensor([1, 128 / 255, 0]).expand(50, 3)
        torch.testing.assert_close(back.sh[:, 0] * 0.28209479 + 0.5, wanted)
        torch.testing.assert_close(back.opacities, torch.full((50,), 64 / 255))

    @pytest.mark.parametrize("element", ["chunk", "sh"])
    def test_elements_that_do_not_fit(self, tmp_path, gaussians, element):
        save_gaussians(tmp_path / "a.compressed.ply", gaussians)
        refused(self.rewritten(tmp_path / "a.compressed.ply", lambda e: e.update({element: e[element][:0]})))

    def test_no_chunks(self, tmp_path, gaussians):
        save_gaussians(tmp_path / "a.compressed.ply", gaussians)
        refused(self.rewritten(tmp_path / "a.compressed.ply", lambda e: e.pop("chunk")), "no chunks")


@pytest.mark.parametrize("suffix", SUFFIXES)
@pytest.mark.parametrize("share", [0, 0.0003, 0.004, 0.3, 0.9, 1])
def test_files_cut_short(tmp_path, gaussians, suffix, share):
    path = tmp_path / f"a{suffix}"
    save_gaussians(path, gaussians if suffix != ".splat" else sample(50))
    data = path.read_bytes()
    path.write_bytes(data[: max(int(share * len(data)) - 3, 0)])
    refused(path)


@pytest.mark.parametrize("suffix", SUFFIXES)
def test_other_content(tmp_path, suffix):
    for content in (
        b"",
        b"x",
        b"\x00" * 777,
        b"\x1f\x8b" + b"\x07" * 99,
        b"PK\x03\x04" + b"\x01" * 99,
        b"NGSP" * 20,
        b"{}",
        b"[]",
    ):
        path = tmp_path / f"a{suffix}"
        path.write_bytes(content)
        refused(path)


class TestSpz:
    def v4(self, path, count, degree=0, sizes=None, bits=12, streams=None, toc=32, version=4):
        """A file of zeros, with a header of choice."""
        sizes = sizes or [n * min(count, 10) for n in (9, 1, 3, 3, 4)]
        parts = [zstandard.compress(bytes(n)) for n in sizes]
        head = struct.pack("<IIIBBBBI12x", 0x5053474E, version, count, degree, bits, 0, streams or len(parts), toc)
        table = b"".join(struct.pack("<QQ", len(p), n) for p, n in zip(parts, sizes, strict=True))
        path.write_bytes(head + table + b"".join(parts))
        return path

    def test_zeros(self, tmp_path):
        assert len(load_gaussians(self.v4(tmp_path / "a.spz", 10))) == 10

    def test_claims(self, tmp_path):
        path = tmp_path / "a.spz"
        refused(self.v4(path, 2**32 - 1), "claims 4294967295")
        refused(self.v4(path, 10**7), "stream 0")
        refused(self.v4(path, 0), "at least one")
        refused(self.v4(path, 10, degree=5), "degree 0 to 4")
        refused(self.v4(path, 10, degree=3), "6 streams")
        refused(self.v4(path, 10, bits=31), "31")
        refused(self.v4(path, 10, streams=200), "200 at byte 32")
        refused(self.v4(path, 10, toc=10**9), "streams")
        refused(self.v4(path, 10, toc=0), "streams")
        refused(self.v4(path, 10, version=5), "version 5")

    def test_streams_that_hold_more_than_they_say(self, tmp_path):
        """A gigabyte of zeros in 32 KB, behind a table that says 90 bytes, or that says a gigabyte."""
        path = self.v4(tmp_path / "a.spz", 10)
        data = bytearray(path.read_bytes())
        compressor = zstandard.ZstdCompressor().compressobj()
        bomb = b"".join(compressor.compress(bytes(1 << 20)) for _ in range(256)) + compressor.flush()
        first = struct.unpack_from("<Q", data, 32)[0]
        data[32:40] = struct.pack("<Q", len(bomb))
        data[32 + 80 : 32 + 80 + first] = bomb
        path.write_bytes(data)
        refused(path, "90 bytes of stream 0")
        data[40:48] = struct.pack("<Q", 1 << 30)
        path.write_bytes(data)
        refused(path, "90 bytes of stream 0")

    @pytest.mark.parametrize("count", [10, 2 * 10**6, 2**32 - 1])
    def test_gzip_that_holds_more_or_less(self, tmp_path, count):
        head = struct.pack("<IIIBBBB", 0x5053474E, 3, count, 0, 12, 0, 0)
        stream = io.BytesIO()
        with gzip.open(stream, "wb") as file:
            file.write(head)
            for _ in range(0 if count > 10 else 100):
                file.write(bytes(1 << 20))
        (tmp_path / "a.spz").write_bytes(stream.getvalue())
        refused(tmp_path / "a.spz", "bytes of decompressed data" if count < 10**8 else "claims")

    def test_version_4_inside_gzip(self, tmp_path):
        path = self.v4(tmp_path / "a.spz", 10)
        path.write_bytes(gzip.compress(path.read_bytes()))
        refused(path, "version 4 inside gzip")

    def test_extensions_are_skipped(self, tmp_path, gaussians):
        save_gaussians(tmp_path / "a.spz", gaussians)
        data = bytearray((tmp_path / "a.spz").read_bytes())
        extension = struct.pack("<II", 0xADBE0002, 4) + b"abcd"
        data[14], data[16:20] = 2, struct.pack("<I", 32 + len(extension))
        (tmp_path / "b.spz").write_bytes(data[:32] + extension + data[32:])
        old = load_gaussians(tmp_path / "a.spz")
        assert largest_differences(old, load_gaussians(tmp_path / "b.spz")).means == 0
        save_gaussians(tmp_path / "c.spz", gaussians, version=3)
        body = bytearray(gzip.decompress((tmp_path / "c.spz").read_bytes()))
        body[14] = 2
        (tmp_path / "c.spz").write_bytes(gzip.compress(body + extension))
        assert largest_differences(old, load_gaussians(tmp_path / "c.spz")).sh == 0

    def test_scenes_that_24_bits_do_not_hold(self, tmp_path, gaussians):
        from dataclasses import replace

        far = replace(gaussians, means=gaussians.means * 1e5)
        save_gaussians(tmp_path / "a.spz", far)
        torch.testing.assert_close(load_gaussians(tmp_path / "a.spz").means, far.means, atol=2**-4, rtol=0)
        with pytest.raises(SplatError, match="scale the scene down"):
            save_gaussians(tmp_path / "a.spz", replace(far, means=far.means * 1e5))


class TestSog:
    def rewritten(self, path, meta=lambda m: None, files=lambda f: None):
        with zipfile.ZipFile(path) as archive:
            parts = {n: archive.read(n) for n in archive.namelist()}
        content = json.loads(parts["meta.json"])
        meta(content)
        parts["meta.json"] = json.dumps(content).encode()
        files(parts)
        with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
            for name, data in parts.items():
                archive.writestr(name, data)
        return path

    @pytest.fixture
    def path(self, tmp_path, gaussians):
        save_gaussians(tmp_path / "a.sog", gaussians)
        return tmp_path / "a.sog"

    def picture(self, pixels):
        file = io.BytesIO()
        Image.fromarray(np.asarray(pixels, np.uint8)).save(file, "WEBP", lossless=True, exact=True)
        return file.getvalue()

    def test_a_folder(self, path, tmp_path):
        (tmp_path / "parts").mkdir()
        zipfile.ZipFile(path).extractall(tmp_path / "parts")
        whole = load_gaussians(path)
        for name in ("parts", "parts/meta.json"):
            assert torch.equal(load_gaussians(tmp_path / name).means, whole.means)
        (tmp_path / "parts" / "quats.webp").unlink()
        refused(tmp_path / "parts" / "meta.json", "quats.webp")

    def test_metadata(self, path):
        for change, match in [
            (lambda m: m.update(version=3), "version 3"),
            (lambda m: m.update(count=2**40), "max_memory"),
            (lambda m: m.update(count=1000), "at least 1000 pixels"),
            (lambda m: m.update(count=0), "at least one"),
            (lambda m: m.pop("count"), "count"),
            (lambda m: m["means"].pop("mins"), "mins"),
            (lambda m: m["scales"].update(codebook=[1, 2, 3]), "codebook"),
            (lambda m: m["quats"].update(files=["../../etc/passwd"]), "without folders"),
            (lambda m: m["quats"].update(files=["no.webp"]), "no.webp"),
            (lambda m: m["shN"].update(bands=7), "bands"),
        ]:
            data = path.read_bytes()
            refused(self.rewritten(path, change), match)
            path.write_bytes(data)

    def test_a_null_in_a_codebook(self, path):
        def change(meta):
            meta["scales"]["codebook"] = [None, *np.linspace(-5, 0, 255).tolist()]

        found = load_gaussians(self.rewritten(path, change))
        assert -5.02 <= float(found.log_scales.min()) < 0

    def test_pictures(self, path):
        refused(self.rewritten(path, files=lambda f: f.update({"sh0.webp": b"no picture"})), "sh0.webp")
        refused(
            self.rewritten(path, files=lambda f: f.update({"sh0.webp": self.picture(np.zeros((2, 2, 4)))})), "50 pixels"
        )

    def test_pictures_and_parts_that_are_far_too_large(self, path):
        picture = self.picture(np.zeros((5000, 5000, 3), np.uint8))
        data = path.read_bytes()
        refused(self.rewritten(path, files=lambda f: f.update({"sh0.webp": picture})), "5000 x 5000")
        path.write_bytes(data)
        refused(self.rewritten(path, files=lambda f: f.update({"sh0.webp": bytes(1 << 25)})), "bytes of sh0.webp")

    def test_labels_and_rotations_out_of_range(self, path):
        labels = self.picture(np.full((8, 8, 3), 255))
        refused(self.rewritten(path, files=lambda f: f.update({"shN_labels.webp": labels})), "labels below")

    def test_rotations_without_an_index(self, path):
        quats = self.picture(np.full((8, 8, 4), 100))
        refused(
            self.rewritten(path, files=lambda f: f.update({"quats.webp": quats})), "50 with quaternions of length zero"
        )

    def test_a_gigabyte_of_metadata(self, path):
        def change(files):
            files["meta.json"] = b" " * (1 << 25) + files["meta.json"]

        refused(self.rewritten(path, files=change), "at most 1048576 bytes of meta.json")

    def test_version_1(self, tmp_path):
        """Bounds instead of codebooks, opacities as logits: two Gaussians worked out by hand."""
        px = lambda *rows: self.picture(np.array([rows]))  # noqa: E731
        meta = {
            "means": {"shape": [2, 3], "mins": [0, 0, -1], "maxs": [1, 2, 1], "files": ["l.webp", "u.webp"]},
            "scales": {"mins": [-4, -5, -6], "maxs": [0, 0, 0], "files": ["s.webp"]},
            "quats": {"files": ["q.webp"]},
            "sh0": {"mins": [-1, -1, -1, -3], "maxs": [1, 1, 1, 3], "files": ["c.webp"]},
            "shN": {"mins": -2, "maxs": 2, "files": ["n.webp", "k.webp"]},
        }
        centroids = np.zeros((1, 192, 3))
        centroids[0, 3:6] = [[0, 255, 51], [255, 0, 0], [0, 0, 255]]  # the second entry
        (tmp_path / "meta.json").write_text(json.dumps(meta))
        for name, data in {
            "l": px((0, 255, 0), (255, 0, 0)),
            "u": px((0, 255, 0), (255, 0, 255)),
            "s": px((0, 0, 0), (255, 255, 255)),
            "q": px((0, 255, 128, 253), (127, 127, 127, 252)),
            "c": px((0, 255, 51, 0), (255, 255, 255, 255)),
            "n": self.picture(centroids),
            "k": px((1, 0, 0), (0, 0, 0)),
        }.items():
            (tmp_path / f"{name}.webp").write_bytes(data)
        g = load_gaussians(tmp_path)
        e = float(np.e)
        torch.testing.assert_close(g.means[0], torch.tensor([0, e**2 - 1, 1 - e]))
        torch.testing.assert_close(g.means[1], torch.tensor([e - 1, 0, np.expm1(-1 + 2 * 65280 / 65535)]).float())
        torch.testing.assert_close(g.log_scales, torch.tensor([[-4.0, -5, -6], [0, 0, 0]]))
        torch.testing.assert_close(g.logit_opacities, torch.tensor([-3.0, 3]))
        torch.testing.assert_close(g.sh[0, 0], torch.tensor([-1, 1, -0.6]))
        torch.testing.assert_close(g.sh[0, 1:], torch.tensor([[-2, 2, -1.2], [2, -2, -2], [-2, -2, 2]]))
        torch.testing.assert_close(g.quats[0, [0, 2]], torch.tensor([-(0.5**0.5), 0.5**0.5]))
        assert g.quats[1].abs().argmax() == 0


KHR = "KHR_gaussian_splatting"


def primitive(tree):
    return tree["meshes"][0]["primitives"][0]


class TestGltf:
    @pytest.fixture
    def path(self, tmp_path, gaussians):
        save_gaussians(tmp_path / "a.gltf", gaussians, up="y")
        return tmp_path / "a.gltf"

    def rewritten(self, path, change):
        tree = json.loads(path.read_text())
        change(tree)
        path.write_text(json.dumps(tree))
        return path

    def test_nodes_move_what_they_show(self, path, gaussians):
        """A parent that scales and shifts, a child that turns; the same mesh twice."""
        q = [0.5, 0.5, 0.5, 0.5]  # x y z w: the axes change places

        def change(tree):
            tree["nodes"] = [{"children": [1, 2], "scale": [2, 2, 2], "translation": [1, 2, 3]}]
            tree["nodes"] += [{"mesh": 0, "rotation": q}, {"mesh": 0}]

        found = load_gaussians(self.rewritten(path, change), up="y")
        assert len(found) == 2 * len(gaussians)
        turn = quaternion_to_matrix(torch.tensor([0.5, 0.5, 0.5, 0.5]))
        shift = torch.tensor([1.0, 2, 3])
        torch.testing.assert_close(found.means[:50], 2 * gaussians.means @ turn.T + shift)
        torch.testing.assert_close(found.means[50:], 2 * gaussians.means + shift)
        torch.testing.assert_close(found.scales[:50], 2 * gaussians.scales)

    def test_a_buffer_beside_it_and_quantised_numbers(self, path, tmp_path, gaussians):
        import base64

        def change(tree):
            content = base64.b64decode(tree["buffers"][0]["uri"].partition(",")[2])
            quats = torch.nn.functional.normalize(gaussians.quats, dim=1).roll(-1, 1)
            more = (quats * 32767).round().short().numpy().tobytes()
            (tmp_path / "my data.bin").write_bytes(content + more)
            tree["buffers"] = [{"byteLength": len(content) + len(more), "uri": "my%20data.bin"}]
            tree["bufferViews"].append({"buffer": 0, "byteOffset": len(content), "byteLength": len(more)})
            entry = {"bufferView": len(tree["bufferViews"]) - 1, "componentType": 5122, "count": 50, "type": "VEC4"}
            tree["accessors"].append(entry | {"normalized": True})
            primitive(tree)["attributes"][f"{KHR}:ROTATION"] = len(tree["accessors"]) - 1

        found = largest_differences(gaussians, load_gaussians(self.rewritten(path, change), up="y"))
        assert found.means == 0 and found.angles < 4 / 32767

    def test_logs_of_scales_as_drafts_had_them(self, path, gaussians):
        def change(tree):
            import base64

            index = primitive(tree)["attributes"][f"{KHR}:SCALE"]
            logs = gaussians.log_scales.numpy().tobytes()
            tree["bufferViews"][index] = {"buffer": 1, "byteLength": len(logs)}
            uri = "data:application/octet-stream;base64," + base64.b64encode(logs).decode()
            tree["buffers"].append({"byteLength": len(logs), "uri": uri})

        assert largest_differences(gaussians, load_gaussians(self.rewritten(path, change), up="y")).log_scales == 0

    @pytest.mark.parametrize(
        ("change", "match"),
        [
            (lambda t: t["accessors"][0].update(count=10**12), "max_memory"),
            (lambda t: [a.update(count=10**6) for a in t["accessors"]], "bytes of buffer 0"),
            (lambda t: t["accessors"][0].update(byteOffset=-8), "bytes of buffer 0"),
            (lambda t: t["accessors"][0].pop("bufferView"), "all their data"),
            (lambda t: t["accessors"][2].update(type="VEC3"), "VEC3"),
            (lambda t: t["buffers"][0].update(byteLength=10**12), "buffer 0"),
            (lambda t: t["buffers"][0].update(uri="/etc/passwd"), "beside this one"),
            (lambda t: t["buffers"][0].update(uri="../x.bin"), "beside this one"),
            (lambda t: t["buffers"][0].update(uri="gone.bin"), "gone.bin"),
            (lambda t: t["buffers"][0].update(uri="data:,@@@"), "data:"),
            (lambda t: t["nodes"][0].update(scale=[1, 2, 1]), "whole glTF"),
            (lambda t: t["nodes"][0].update(scale=[-1, 1, 1]), "whole glTF"),
            (lambda t: t["nodes"][0].update(children=[0]), "a tree of nodes"),
            (lambda t: t["scenes"][0].update(nodes=[]), "none in its scene"),
            (lambda t: primitive(t).update(mode=4), "mode 4"),
            (lambda t: primitive(t)["extensions"][KHR].update(kernel="x"), "ellipse"),
            (lambda t: primitive(t)["attributes"].pop(f"{KHR}:OPACITY"), "OPACITY"),
            (lambda t: primitive(t)["attributes"].pop("POSITION"), "POSITION"),
            (lambda t: t.pop("accessors"), "accessors"),
        ],
    )
    def test_damaged(self, path, change, match):
        refused(self.rewritten(path, change), match)


def test_splat_files_of_odd_lengths(tmp_path):
    (tmp_path / "a.splat").write_bytes(bytes(95))
    refused(tmp_path / "a.splat", "records of 32 bytes")
    (tmp_path / "a.splat").write_bytes(bytes(64))
    assert len(load_gaussians(tmp_path / "a.splat")) == 2  # zeros: quaternions of -1 -1 -1 -1


def test_negative_scales(tmp_path):
    record = struct.pack("<6f8B", 0, 0, 0, 1, -1, 1, *[128] * 4, 255, 128, 128, 128)
    (tmp_path / "a.splat").write_bytes(record)
    refused(tmp_path / "a.splat", "scales")


def test_what_cannot_be_written(tmp_path, gaussians):
    from dataclasses import replace

    for change, match in [
        ({"means": gaussians.means * float("nan")}, "50 with NaN or infinite means"),
        ({"quats": gaussians.quats * 0}, "50 with quaternions of length zero"),
    ]:
        with pytest.raises(
            SplatError, match=rf"save_gaussians: gaussians: expected .* got {match}; nothing was written"
        ):
            save_gaussians(tmp_path / "a.ply", replace(gaussians, **change))
    with pytest.raises(SplatError, match="expected at least one, got none"):
        save_gaussians(tmp_path / "a.ply", gaussians[:0])
    with pytest.raises(SplatError, match=r"expected a file ending with \.compressed\.ply, .*got 'a\.xyz'; rename it"):
        save_gaussians(tmp_path / "a.xyz", gaussians)
    with pytest.raises(SplatError, match="scale the scene down"):
        save_gaussians(tmp_path / "a.glb", replace(gaussians, log_scales=gaussians.log_scales + 100))
    with pytest.raises(FileNotFoundError, match=r"load_gaussians: .*none\.ply: expected a file of Gaussians"):
        load_gaussians(tmp_path / "none.ply")
    with pytest.raises(OSError, match="No such file"):
        save_gaussians(tmp_path / "no" / "a.ply", gaussians)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("suffix", SUFFIXES)
def test_a_failed_write_leaves_what_was_there(tmp_path, monkeypatch, suffix):
    path = tmp_path / f"a{suffix}"
    save_gaussians(path, sample(5))
    before = path.read_bytes()

    def full(descriptor):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("os.fsync", full)
    with pytest.raises(OSError, match="No space left"):
        save_gaussians(path, sample(6))
    assert path.read_bytes() == before and [p.name for p in tmp_path.iterdir()] == [path.name]
