// What is hidden under the photograph, and may hide the foreground: only its depth is wanted.
#version 450
#extension GL_GOOGLE_include_directive : enable
#include "placing.glsl"

layout(location = 0) in vec3 position;
layout(location = 1) in vec3 normal;
layout(location = 2) in vec2 uv;
layout(location = 3) in vec3 tangent;
layout(location = 4) in vec3 bitangent;

void main() {
  mat4 modelView = cameraBuffer.viewMatrix * objectTransformBuffer.modelMatrix;
  gl_Position = cameraBuffer.projectionMatrix * (modelView * vec4(position, 1));
}
