"""The CUDA twin of the hash encoding: the tests of the op, run again in the emulator, or with ``--device cuda``.

Threads add to the table in any order, so its gradient is compared with a tolerance.
"""

import pytest

from tests.emulation import on_gpu
from tests.test_hash_encoding import (  # noqa: F401
    test_a_linear_function_on_a_dense_level_is_exact,
    test_a_vertex_returns_its_entry,
    test_any_number_of_points,
    test_borders_are_inside,
    test_fine_hashed_levels_of_huge_resolution,
    test_half_tables,
    test_jacobian_matches_autograd_of_the_reference,
    test_matches_the_reference,
    test_nan_points_give_nan_features_of_their_own_only,
    test_points_outside_are_clamped_and_have_no_gradient,
    test_special_numbers_of_half_tables,
)
from tests.test_slopes import (  # noqa: F401
    test_empty_nan_and_outside,
    test_gradients_into_a_buffer_and_from_a_half_table,
    test_slopes_of_the_encoding,
    test_the_same_as_by_the_jacobian,
)


@pytest.fixture(autouse=True)
def _on_gpu(device):
    with on_gpu(device):
        yield
