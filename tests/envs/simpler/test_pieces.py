"""A collision mesh falls into the convex pieces the original makes of it."""

from pathlib import Path

import numpy as np
import pytest

from st4vla.envs.simpler.pieces import convex_pieces
from st4vla.platform.errors import EnvError

CORNERS = [(0, 0, 0), (1, 0, 0), (0, 1, 0), (0, 0, 1)]
FACES = [(1, 2, 3), (1, 2, 4), (1, 3, 4), (2, 3, 4)]


def tetrahedra(path: Path, shifts: list[float], objects: bool) -> Path:
    """Write one tetrahedron for each shift along x, as objects of their own or all in one."""
    lines = ["o all"]
    for number, shift in enumerate(shifts):
        lines += [f"o part_{number}"] if objects else []
        lines += [f"v {x + shift} {y} {z}" for x, y, z in CORNERS]
        lines += ["f " + " ".join(f"{4 * number + corner}/1/1" for corner in face) for face in FACES]
    path.write_text("\n".join(lines))
    return path


def test_parts_that_do_not_touch_are_pieces_of_their_own(tmp_path: Path) -> None:
    pieces = convex_pieces(tetrahedra(tmp_path / "two.obj", [0.0, 5.0], objects=False))
    assert [piece.shape for piece in pieces] == [(4, 3), (4, 3)]
    assert pieces[1].min(axis=0).tolist() == [5.0, 0.0, 0.0]


def test_parts_that_share_a_corner_are_one_piece_and_the_corner_counts_once(tmp_path: Path) -> None:
    pieces = convex_pieces(tetrahedra(tmp_path / "joined.obj", [0.0, 1.0], objects=False))
    assert [piece.shape for piece in pieces] == [(7, 3)]


def test_objects_are_never_joined(tmp_path: Path) -> None:
    pieces = convex_pieces(tetrahedra(tmp_path / "objects.obj", [0.0, 1.0], objects=True))
    assert [piece.shape for piece in pieces] == [(4, 3), (4, 3)]


def test_corners_stand_in_the_order_the_faces_name_them(tmp_path: Path) -> None:
    (tmp_path / "order.obj").write_text("v 0 0 0\nv 1 0 0\nv 0 1 0\nv 0 0 1\nf 4 3 2\nf 4 3 1\nf 4 2 1\nf 3 2 1\n")
    (piece,) = convex_pieces(tmp_path / "order.obj")
    assert np.array_equal(piece, [[0, 0, 1], [0, 1, 0], [1, 0, 0], [0, 0, 0]])


def test_a_mesh_without_faces_is_refused(tmp_path: Path) -> None:
    (tmp_path / "empty.obj").write_text("v 0 0 0\n")
    with pytest.raises(EnvError, match="has no faces"):
        convex_pieces(tmp_path / "empty.obj")
    with pytest.raises(EnvError, match="cannot be read"):
        convex_pieces(tmp_path / "absent.obj")
