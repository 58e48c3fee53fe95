import pytest
import torch
from polyfield.cuda.sh_basis import sh_basis

from tests.reference import sh_basis as reference


def unit(n, dtype=torch.float64, seed=0):
    return torch.nn.functional.normalize(
        torch.randn(n, 3, generator=torch.Generator().manual_seed(seed), dtype=torch.float64), dim=-1
    ).to(dtype)


@pytest.mark.parametrize("degree", range(5))
@pytest.mark.parametrize("n", [0, 1, 17, 3000])
def test_matches_the_definition(n, degree):
    d = unit(n)
    torch.testing.assert_close(sh_basis(d, degree), reference.sh_basis(d, degree), atol=1e-12, rtol=0)
    torch.testing.assert_close(sh_basis(d.float(), degree), reference.sh_basis(d, degree).float(), atol=2e-6, rtol=0)


def test_bases_are_orthonormal_over_the_sphere():
    z = torch.from_numpy(__import__("numpy").polynomial.legendre.leggauss(12)[0])
    w = torch.from_numpy(__import__("numpy").polynomial.legendre.leggauss(12)[1])
    phi = torch.arange(24, dtype=torch.float64) * (2 * torch.pi / 24)
    r = (1 - z * z).sqrt()
    d = torch.stack([r[:, None] * phi.cos(), r[:, None] * phi.sin(), z[:, None].expand(-1, 24)], -1).reshape(-1, 3)
    area = (w[:, None] * (2 * torch.pi / 24)).expand(-1, 24).reshape(-1)
    b = sh_basis(d, 4)
    torch.testing.assert_close(b.T @ (area[:, None] * b), torch.eye(25, dtype=torch.float64), atol=1e-12, rtol=0)


@pytest.mark.parametrize("degree", range(5))
def test_gradcheck(degree):
    assert torch.autograd.gradcheck(lambda d: sh_basis(d, degree), unit(19).requires_grad_())


def test_opcheck():
    torch.library.opcheck(torch.ops.polyfield.sh_basis.default, (unit(5, torch.float32).requires_grad_(), 3))


def test_errors():
    with pytest.raises(ValueError, match=r"sh_basis: degree: expected a number from 0 to 4, got 5"):
        sh_basis(unit(2), 5)
    with pytest.raises(ValueError, match=r"sh_basis: directions: expected shape \(\*, 3\), got \(2, 4\)"):
        sh_basis(torch.zeros(2, 4), 2)
    with pytest.raises(TypeError, match=r"expected float32 or float64, got int64"):
        sh_basis(torch.zeros(2, 3, dtype=torch.int64), 2)
