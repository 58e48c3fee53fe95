import math

import pytest
import torch
from polyfield.geometry import Camera, CameraModel
from polyfield.geometry.cameras import intrinsics
from polyfield.geometry.transforms import look_at, se3_exp

F64 = torch.float64
POSE = look_at(
    torch.tensor([1.0, -2.0, 0.5], dtype=F64),
    torch.tensor([0.2, 0.1, 0.0], dtype=F64),
    torch.tensor([0.0, 0.1, 1.0], dtype=F64),
)
FOX = [0.0578421, -0.0805099, -0.000980296, 0.00015575]


def camera(model, width, height, *rest, pose=POSE):
    """``rest``: fx, fy, cx, cy and, if any, the lens's coefficients."""
    K = intrinsics(*rest[:4], pose)
    distortion = rest[4] if len(rest) > 4 else None
    return Camera(
        K, pose, width, height, model, None if distortion is None else torch.tensor(distortion, dtype=pose.dtype)
    )


CAMERAS = {
    "pinhole": camera(CameraModel.PINHOLE, 400, 300, 350, 360, 210.5, 140),
    "fox": camera(CameraModel.OPENCV, 540, 960, 687.76, 687.245, 277.279, 482.634, FOX),
    "fern": camera(CameraModel.OPENCV, 504, 378, 407.57, 407.57, 252, 189, [0.01975, 0.0, 0.0, 0.0]),
    "can": camera(CameraModel.OPENCV, 720, 1280, 1105, 1105, 360, 640, [0.058, 0.0, 0.0, 0.0]),
    "five": camera(CameraModel.OPENCV, 640, 480, 400, 400, 320, 240, [-0.28, 0.11, 0.001, -0.0007, -0.02]),
    "rational": camera(CameraModel.OPENCV, 640, 480, 300, 300, 320, 240, [8.1, 3.2, 1e-4, -2e-4, 0.15, 8.4, 5.0, 0.8]),
    "fisheye": camera(CameraModel.FISHEYE, 1000, 1000, 330, 330, 500, 500, [0.02, -0.003, 0.0004, -0.00002]),
    "equidistant": camera(CameraModel.FISHEYE, 800, 600, 200, 200, 400, 300, [0.0, 0.0, 0.0, 0.0]),
    "equirectangular": Camera.equirectangular(360, 180, POSE),
}


def corners(c):
    """Corners, edge middles and the centre."""
    x, y = torch.meshgrid(
        torch.tensor([0.0, 0.5, 1.0], dtype=F64), torch.tensor([0.0, 0.5, 1.0], dtype=F64), indexing="ij"
    )
    return torch.stack([x.reshape(-1) * c.width, y.reshape(-1) * c.height], -1)


@pytest.mark.parametrize("name", CAMERAS)
def test_round_trip_to_a_millionth_of_a_pixel(name):
    c = CAMERAS[name]
    inner = c.pixel_centers()[:: max(1, c.width * c.height // 5000)]
    pixels = torch.cat([inner, corners(c)]) if name != "equirectangular" else inner
    seen = c.sees(pixels)
    rays = c.rays(pixels)
    torch.testing.assert_close(rays.directions.norm(dim=-1), torch.ones(len(pixels), dtype=F64), atol=1e-12, rtol=0)
    back, z_depths = c.project(rays.at(torch.full_like(rays.near, 3.0)))
    assert seen.double().mean() > 0.75
    if name not in ("fisheye", "equidistant"):
        assert bool(seen.all())
    torch.testing.assert_close(back[seen], pixels[seen], atol=1e-6, rtol=0)
    torch.testing.assert_close(z_depths[seen], 3 * (rays.directions @ c.forward)[seen], atol=1e-9, rtol=0)


def test_pinhole_is_the_textbook_formula():
    c = CAMERAS["pinhole"]
    points = torch.randn(50, 3, dtype=F64, generator=torch.Generator().manual_seed(0)) * 0.5
    local = (torch.cat([points, torch.ones(50, 1, dtype=F64)], 1) @ c.world_to_camera.T)[:, :3]
    homogeneous = local @ c.K.T
    pixels, z_depths = c.project(points)
    torch.testing.assert_close(pixels, homogeneous[:, :2] / homogeneous[:, 2:])
    torch.testing.assert_close(z_depths, local[:, 2])


def test_radial_tangential_is_the_closed_form():
    k1, k2, p1, p2 = FOX
    x, y = 0.31, -0.22
    s = x * x + y * y
    u = x * (1 + k1 * s + k2 * s * s) + 2 * p1 * x * y + p2 * (s + 2 * x * x)
    v = y * (1 + k1 * s + k2 * s * s) + p1 * (s + 2 * y * y) + 2 * p2 * x * y
    c = camera(CameraModel.OPENCV, 540, 960, 600, 620, 277, 482, FOX, pose=torch.eye(4, dtype=F64))
    pixels, _ = c.project(torch.tensor([[x, y, 1.0]], dtype=F64) * 2.5)
    torch.testing.assert_close(pixels[0], torch.tensor([600 * u + 277, 620 * v + 482], dtype=F64))


@pytest.mark.parametrize("degrees", [1.0, 45.0, 85.0, 95.0, 130.0, 170.0])
def test_fisheye_sees_behind_itself(degrees):
    k = [0.02, -0.003, 0.0004, -0.00002]
    theta = math.radians(degrees)
    radius = theta * (1 + k[0] * theta**2 + k[1] * theta**4 + k[2] * theta**6 + k[3] * theta**8)
    c = camera(CameraModel.FISHEYE, 2000, 2000, 330, 330, 1000, 1000, k, pose=torch.eye(4, dtype=F64))
    point = torch.tensor([[math.sin(theta) * 0.6, math.sin(theta) * 0.8, math.cos(theta)]], dtype=F64)
    pixels, z_depths = c.project(point)
    torch.testing.assert_close(pixels[0], 1000 + 330 * radius * torch.tensor([0.6, 0.8], dtype=F64))
    torch.testing.assert_close(c.directions(pixels), point, atol=1e-10, rtol=0)
    assert (float(z_depths[0]) < 0) == (degrees > 90)


def test_equirectangular_axes():
    c = Camera.equirectangular(360, 180, torch.eye(4, dtype=F64))
    pixels = torch.tensor([[180.0, 90.0], [270.0, 90.0], [90.0, 90.0], [180.0, 180.0], [180.0, 0.0]], dtype=F64)
    wanted = torch.tensor([[0, 0, 1], [1, 0, 0], [-1, 0, 0], [0, 1, 0], [0, -1, 0]], dtype=F64)
    torch.testing.assert_close(c.directions(pixels), wanted, atol=1e-12, rtol=0)


def test_what_cannot_be_seen_is_nan_and_its_ray_is_empty():
    pixels, z_depths = camera(CameraModel.PINHOLE, 10, 10, 10, 10, 5, 5, pose=torch.eye(4)).project(
        torch.tensor([[0.0, 0.0, -1.0], [0.0, 0.0, 0.0], [0.0, 0.0, 1.0]])
    )
    assert pixels.isnan().any(-1).tolist() == [True, True, False]
    assert z_depths.tolist() == [-1.0, 0.0, 1.0]
    # 1 - 0.3 r^2 folds back at r = 1/sqrt(0.9): 46.5 degrees; the unit plane's largest radius is 0.703.
    folding = camera(CameraModel.OPENCV, 200, 200, 100, 100, 100, 100, [-0.3, 0, 0, 0], pose=torch.eye(4, dtype=F64))
    far_out, _ = folding.project(torch.tensor([[1.5, 0.0, 1.0]], dtype=F64))
    assert bool(far_out.isnan().all())
    pixels = torch.tensor([[100 + 70.0, 100.0], [100 + 71.0, 100.0]], dtype=F64)
    assert folding.sees(pixels).tolist() == [True, False]
    rays = folding.rays(pixels, near=0.2)
    assert rays.far.tolist() == [math.inf, 0.2]
    assert bool(rays.directions.isfinite().all())
    fish = CAMERAS["equidistant"]
    assert fish.sees(torch.tensor([[400.0 + 628, 300.0], [400.0 + 629, 300.0]], dtype=F64)).tolist() == [True, False]


def test_rays_are_pixel_centres_row_by_row():
    c = camera(CameraModel.PINHOLE, 3, 2, 1, 1, 0, 0, pose=torch.eye(4))
    rays = c.rays(near=0.5, far=9.0)
    ratio = rays.directions[:, :2] / rays.directions[:, 2:]
    wanted = [[0.5, 0.5], [1.5, 0.5], [2.5, 0.5], [0.5, 1.5], [1.5, 1.5], [2.5, 1.5]]
    torch.testing.assert_close(ratio, torch.tensor(wanted))
    assert rays.near.tolist() == [0.5] * 6
    assert rays.far.tolist() == [9.0] * 6
    assert rays.directions.dtype == torch.float32
    assert len(c.rays(torch.empty(0, 2))) == 0


@pytest.mark.parametrize("name", CAMERAS)
def test_scaling_scales_pixels_exactly(name):
    c = CAMERAS[name]
    points = c.rays(torch.tensor([[0.3, 0.4], [0.6, 0.7]], dtype=F64) * torch.tensor([c.width, c.height])).at(
        torch.ones(2)
    )
    full, _ = c.project(points)
    half, _ = c.downscaled(2).project(points)
    torch.testing.assert_close(half * 2, full, atol=1e-9, rtol=0)
    odd = c.resized(77, 41)
    got, _ = odd.project(points)
    torch.testing.assert_close(got, full * torch.tensor([77 / c.width, 41 / c.height], dtype=F64), atol=1e-9, rtol=0)
    crop = c.cropped(30, 20, 50, 40)
    assert (crop.width, crop.height) == (50, 40)
    torch.testing.assert_close(crop.project(points)[0], full - torch.tensor([30.0, 20.0], dtype=F64), atol=1e-9, rtol=0)


def test_downscaled_rounds_and_keeps_a_pixel():
    c = camera(CameraModel.PINHOLE, 5, 7, 4, 4, 2.5, 3.5)
    assert (c.downscaled(2).width, c.downscaled(2).height) == (3, 4)
    assert (c.downscaled(100).width, c.downscaled(100).height) == (1, 1)


@pytest.mark.parametrize("name", CAMERAS)
def test_differentiable_in_pose_intrinsics_and_lens(name):
    c = CAMERAS[name]
    pixels = torch.tensor([[0.31, 0.45], [0.5, 0.5], [0.62, 0.58]], dtype=F64) * torch.tensor([c.width, c.height])
    points = c.rays(pixels).at(torch.full((3,), 2.0, dtype=F64))
    lens = torch.zeros(0, dtype=F64) if c.distortion is None else c.distortion

    def moved(twist, K, lens):
        return Camera(K, se3_exp(twist) @ c.camera_to_world, c.width, c.height, c.model, lens if len(lens) else None)

    def project(twist, K, lens):
        return moved(twist, K, lens).project(points)

    def cast(twist, K, lens):
        rays = moved(twist, K, lens).rays(pixels)
        return rays.origins, rays.directions

    inputs = (torch.zeros(6, dtype=F64).requires_grad_(), c.K.clone().requires_grad_(), lens.clone().requires_grad_())
    assert torch.autograd.gradcheck(project, inputs, atol=1e-5, rtol=1e-4)
    assert torch.autograd.gradcheck(cast, inputs, atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize("name", CAMERAS)
def test_gradients_are_finite_for_points_nobody_sees(name):
    c = CAMERAS[name]
    local = torch.tensor([[0, 0, 0], [0, 0, 1], [0, 0, -1], [0, 1, 0], [1e-20, 0, 1], [1e6, 0, 1e-6]], dtype=F64)
    points = (local @ c.camera_to_world[:3, :3].T + c.position).requires_grad_()
    pixels, _ = c.project(points)
    torch.where(pixels.isnan(), 0.0, pixels).sum().backward()
    assert bool(points.grad.isfinite().all())


def test_runs_on_the_device_asked_for(device, dtype):
    c = CAMERAS["fox"].to(device)
    c = Camera(c.K.to(dtype), c.camera_to_world.to(dtype), c.width, c.height, c.model, c.distortion.to(dtype))
    pixels = torch.tensor([[3.0, 5.0], [500.0, 900.0]], device=device, dtype=dtype)
    rays = c.rays(pixels)
    assert rays.directions.device.type == device.type
    assert rays.directions.dtype == dtype
    tolerance = 1e-6 if dtype == F64 else 2e-3
    torch.testing.assert_close(c.project(rays.at(torch.ones_like(rays.near)))[0], pixels, atol=tolerance, rtol=0)


def test_errors():
    eye = torch.eye(4)
    with pytest.raises(ValueError, match=r"Camera: K: expected shape \(3, 3\), got \(4, 4\)"):
        Camera(eye, eye, 4, 4)
    with pytest.raises(ValueError, match=r"Camera: camera_to_world: expected shape \(4, 4\), got \(3, 4\)"):
        Camera(torch.eye(3), eye[:3], 4, 4)
    with pytest.raises(ValueError, match=r"width, height: expected at least 1 x 1, got 0 x 4"):
        Camera(torch.eye(3), eye, 0, 4)
    with pytest.raises(ValueError, match=r"distortion: expected 4 or 5 or 8 coefficients for OPENCV, got 3"):
        Camera(torch.eye(3), eye, 4, 4, CameraModel.OPENCV, torch.zeros(3))
    with pytest.raises(ValueError, match=r"distortion: expected 0 coefficients for PINHOLE, got 4"):
        Camera(torch.eye(3), eye, 4, 4, distortion=torch.zeros(4))
    with pytest.raises(ValueError, match=r"factor: expected a positive number, got 0"):
        Camera(torch.eye(3), eye, 4, 4).downscaled(0)
