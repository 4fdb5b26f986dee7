"""Split a collision mesh into the convex pieces the original makes of it.

SAPIEN 2 joins corners that lie at one place and takes every connected part of every object in a Wavefront file as a
piece; SAPIEN 3 takes the whole object as one. So the original's spoon is hollow, balances elsewhere and lies otherwise.
Corners are kept in the order in which the faces name them, on which the hull that PhysX makes of many corners depends.
"""

from collections.abc import Iterable
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import sapien.physx
from scipy.sparse import coo_matrix
from scipy.sparse.csgraph import connected_components

from st4vla.platform.errors import EnvError


@cache
def convex_pieces(path: Path) -> tuple[np.ndarray, ...]:
    """Give the corners float32 [N,3] of each piece of a Wavefront file.

    Raises:
        EnvError: the file is not there or names no faces.
    """
    try:
        lines = path.read_text().splitlines()
    except OSError as error:
        raise EnvError(f"The collision mesh {path} cannot be read; run `st4vla assets check`.") from error
    corners = np.array([line.split()[1:4] for line in lines if line.startswith("v ")], dtype=np.float64)
    pieces = [piece for faces in _objects(lines) for piece in _connected(corners, faces)]
    if not pieces:
        raise EnvError(f"The collision mesh {path} has no faces; run `st4vla assets check`.")
    return tuple(pieces)


def _objects(lines: Iterable[str]) -> list[list[list[int]]]:
    """Give the faces, as corner numbers, of each object of a file."""
    found: list[list[list[int]]] = [[]]
    for line in lines:
        if line.startswith(("o ", "g ")):
            found.append([])
        elif line.startswith("f "):
            found[-1].append([int(word.split("/")[0]) - 1 for word in line.split()[1:]])
    return [faces for faces in found if faces]


def _connected(corners: np.ndarray, faces: list[list[int]]) -> list[np.ndarray]:
    places: dict[tuple[float, ...], int] = {}
    joined = [[places.setdefault(tuple(corners[corner]), len(places)) for corner in face] for face in faces]
    ends = [(face[number - 1], corner) for face in joined for number, corner in enumerate(face)]
    rows, columns = np.array(ends).T
    graph = coo_matrix((np.ones(len(ends)), (rows, columns)), shape=(len(places), len(places)))
    count, part = connected_components(graph, directed=False)
    points = np.array(list(places), dtype=np.float32)
    pieces = [points[part == number] for number in range(count)]
    return [piece for piece in pieces if len(piece) > 3]


def add_pieces(builder: Any, path: Path, scale: float, material: Any, density: float) -> None:
    """Let a builder's body consist of the pieces of a mesh, besides whatever it is given otherwise."""
    build = builder.build_physx_component

    def with_pieces(link_parent: Any = None) -> Any:
        body = build(link_parent)
        for piece in convex_pieces(path):
            shape = sapien.physx.PhysxCollisionShapeConvexMesh(vertices=piece, scale=[scale] * 3, material=material)
            shape.set_density(density)
            body.attach(shape)
        return body

    builder.build_physx_component = with_pieces
