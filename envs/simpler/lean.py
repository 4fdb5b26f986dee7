"""Make a robot cheaper to simulate without changing how it moves.

The robots' URDFs have many links that PhysX solves for and that do nothing: sensor mounts without mass or shape, and
parts bolted to a base that is itself bolted down. The first are left out, the shapes of the second are given to the
base. What is left out is still known by where it sits on a link that is kept.
"""

from typing import Any

import sapien

Frames = dict[str, tuple[str, sapien.Pose]]  # link that was left out -> link that carries it, pose on that


def lean(builder: Any) -> Frames:
    """Thin out an articulation builder in place; give the frames of the links that were left out."""
    frames: Frames = {}
    links = builder.link_builders
    while idle := [link for link in links if _is_idle(link, links)]:
        for link in idle:
            record = link.joint_record
            pose = record.pose_in_parent * record.pose_in_child.inv()
            for shape in link.collision_records:
                shape.pose = pose * shape.pose
                link.parent.collision_records.append(shape)
            frames[link.name] = (link.parent.name, pose)
            links.remove(link)
    for index, link in enumerate(links):
        link.index = index
    return {name: _resolved(name, frames) for name in frames}


def _is_idle(link: Any, links: list[Any]) -> bool:
    if link.parent is None or link.joint_record.joint_type != "fixed" or any(other.parent is link for other in links):
        return False
    return not link.collision_records or link.parent.parent is None


def _resolved(name: str, frames: Frames) -> tuple[str, sapien.Pose]:
    """Follow a frame to a link that was kept."""
    carrier, pose = frames[name]
    while carrier in frames:
        carrier, above = frames[carrier]
        pose = above * pose
    return carrier, pose
