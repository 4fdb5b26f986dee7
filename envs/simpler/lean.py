"""Make a robot cheaper to simulate without changing how it moves.

The robots' URDFs have many links that PhysX solves for and that do nothing: sensor mounts without mass or shape, parts
bolted to a base that is itself bolted down, and parts bolted to a link that moves. The first are left out, the shapes
of the others, and the mass of the third, are given to what they are bolted to. What is left out is still known by where
it sits on a link that is kept.
"""

from typing import Any

import numpy as np
import sapien

Frames = dict[str, tuple[str, sapien.Pose]]  # link that was left out -> link that carries it, pose on that


def lean(builder: Any) -> Frames:
    """Thin out an articulation builder in place; give the frames of the links that were left out."""
    frames: Frames = {}
    links = builder.link_builders
    while idle := [link for link in links if _is_idle(link, links)]:
        for link in idle:
            _give_to_parent(link, links, frames)
    for link in [link for link in links if _is_bolted(link)]:
        _add_mass(link.parent, link, _pose_on_parent(link))
        _give_to_parent(link, links, frames)
    for index, link in enumerate(links):
        link.index = index
    return {name: _resolved(name, frames) for name in frames}


def _is_idle(link: Any, links: list[Any]) -> bool:
    if link.parent is None or link.joint_record.joint_type != "fixed" or any(other.parent is link for other in links):
        return False
    return not link.collision_records or link.parent.parent is None


def _is_bolted(link: Any) -> bool:
    """Say whether a link is fixed to one that moves."""
    return link.parent is not None and link.parent.parent is not None and link.joint_record.joint_type == "fixed"


def _pose_on_parent(link: Any) -> sapien.Pose:
    return link.joint_record.pose_in_parent * link.joint_record.pose_in_child.inv()


def _give_to_parent(link: Any, links: list[Any], frames: Frames) -> None:
    """Leave a link out: its parent gets its shapes and the links that hang on it."""
    pose, parent = _pose_on_parent(link), link.parent
    for shape in link.collision_records:
        shape.pose = pose * shape.pose
        parent.collision_records.append(shape)
    for other in links:
        if other.parent is link:
            other.parent = parent
            other.joint_record.pose_in_parent = pose * other.joint_record.pose_in_parent
    frames[link.name] = (parent.name, pose)
    links.remove(link)


def _add_mass(parent: Any, link: Any, pose: sapien.Pose) -> None:
    """Give a link the mass and inertia of another that sits on it at a pose, by the parallel axis theorem."""
    first, second = _weigh(parent), _weigh(link)
    parts = [first, (second[0], pose * second[1], second[2])]
    masses = np.array([part_mass for part_mass, _, _ in parts])
    middle = masses @ np.array([at.p for _, at, _ in parts], dtype=np.float64) / masses.sum()
    inertia = np.zeros((3, 3))
    for part_mass, at, moments in parts:
        axes, away = at.to_transformation_matrix()[:3, :3].astype(np.float64), at.p - middle
        inertia += axes @ np.diag(moments) @ axes.T + part_mass * (away @ away * np.eye(3) - np.outer(away, away))
    moments, axes = np.linalg.eigh(inertia)
    frame = np.eye(4)
    frame[:3, :3], frame[:3, 3] = axes * np.linalg.det(axes), middle
    parent.set_mass_and_inertia(float(masses.sum()), sapien.Pose(frame), moments)


def _weigh(link: Any) -> tuple[float, sapien.Pose, np.ndarray]:
    """Give a link's mass, the frame of its inertia and its moments; PhysX works them out where the URDF is silent."""
    if not link._auto_inertial:
        return link._mass, link._cmass_local_pose, np.asarray(link._inertia)
    kind, link.physx_body_type = link.physx_body_type, "dynamic"
    body = link.build_physx_component()
    link.physx_body_type = kind
    return body.mass, body.cmass_local_pose, body.inertia


def _resolved(name: str, frames: Frames) -> tuple[str, sapien.Pose]:
    """Follow a frame to a link that was kept."""
    carrier, pose = frames[name]
    while carrier in frames:
        carrier, above = frames[carrier]
        pose = above * pose
    return carrier, pose
