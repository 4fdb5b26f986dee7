// What is seen: its place, its normal in the camera's frame, its texture's place.
#version 450
#extension GL_GOOGLE_include_directive : enable
#include "placing.glsl"

layout(location = 0) in vec3 position;
layout(location = 1) in vec3 normal;
layout(location = 2) in vec2 uv;
layout(location = 3) in vec3 tangent;
layout(location = 4) in vec3 bitangent;

layout(location = 0) out vec3 outPlace;
layout(location = 1) out vec3 outNormal;
layout(location = 2) out vec2 outUV;

void main() {
  mat4 modelView = cameraBuffer.viewMatrix * objectTransformBuffer.modelMatrix;
  vec4 place = modelView * vec4(position, 1);
  // The inverse transposed but for a factor, which the normal's length takes away.
  vec3 x = modelView[0].xyz, y = modelView[1].xyz, z = modelView[2].xyz;
  mat3 turn = mat3(cross(y, z), cross(z, x), cross(x, y));
  outPlace = place.xyz;
  outNormal = normalize(turn * normal) * sign(dot(x, turn[0]));
  outUV = uv;
  gl_Position = cameraBuffer.projectionMatrix * place;
}
