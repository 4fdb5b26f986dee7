// What is under the photograph and is named all the same: its depth and its number.
#version 450
#extension GL_GOOGLE_include_directive : enable
#include "placing.glsl"

layout(location = 0) out vec4 outSegments;

void main() {
  outSegments = vec4(objectDataBuffer.segmentation.y / 255.0, 0, 0, 1);
}
