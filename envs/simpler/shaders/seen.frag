// Shade as SAPIEN's lean shaders do under directional lights without shadows and no sky; lights.glsl is its own.
#version 450
#extension GL_GOOGLE_include_directive : enable

layout(constant_id = 0) const int NUM_DIRECTIONAL_LIGHTS = 0;

#include "lights.glsl"
#include "placing.glsl"

layout(set = 2, binding = 0) uniform MaterialBuffer {
  vec4 emission;
  vec4 baseColor;
  float fresnel;
  float roughness;
  float metallic;
  float transmission;
  float ior;
  float transmissionRoughness;
  int textureMask;
  int padding1;
  vec4 textureTransforms[6];
} materialBuffer;

layout(set = 2, binding = 1) uniform sampler2D colorTexture;
layout(set = 2, binding = 2) uniform sampler2D roughnessTexture;
layout(set = 2, binding = 3) uniform sampler2D normalTexture;
layout(set = 2, binding = 4) uniform sampler2D metallicTexture;
layout(set = 2, binding = 5) uniform sampler2D emissionTexture;
layout(set = 2, binding = 6) uniform sampler2D transmissionTexture;

layout(set = 3, binding = 0) uniform SceneBuffer {
  vec4 ambientLight;
  PointLight pointLights[10];
  DirectionalLight directionalLights[3];
  SpotLight spotLights[10];
  SpotLight texturedLights[1];
} sceneBuffer;

layout(location = 0) in vec3 inPlace;
layout(location = 1) in vec3 inNormal;
layout(location = 2) in vec2 inUV;

layout(location = 0) out vec4 outColor;
layout(location = 1) out vec4 outSegments;

vec2 at(int texture) {
  vec4 moved = materialBuffer.textureTransforms[texture];
  return inUV * moved.zw + moved.xy;
}

void main() {
  int has = materialBuffer.textureMask;
  vec4 albedo = (has & 1) != 0 ? texture(colorTexture, at(0)) : materialBuffer.baseColor;
  albedo.a *= 1 - objectDataBuffer.transparency;
  if (albedo.a == 0) {
    discard;
  }
  float roughness = (has & 2) != 0 ? texture(roughnessTexture, at(1)).r : materialBuffer.roughness;
  float metallic = (has & 8) != 0 ? texture(metallicTexture, at(3)).r : materialBuffer.metallic;
  vec3 color = (has & 16) != 0 ? texture(emissionTexture, at(4)).rgb : materialBuffer.emission.rgb;

  vec3 normal = normalize(inNormal);
  vec3 toCamera = -normalize(inPlace);
  vec3 diffused = albedo.rgb * (1 - metallic);
  vec3 mirrored = materialBuffer.fresnel * 0.08 * (1 - metallic) + albedo.rgb * metallic;
  for (int i = 0; i < NUM_DIRECTIONAL_LIGHTS; ++i) {
    vec3 direction = mat3(cameraBuffer.viewMatrix) * sceneBuffer.directionalLights[i].direction.xyz;
    vec3 emission = sceneBuffer.directionalLights[i].emission.rgb;
    color += computeDirectionalLight(direction, emission, normal, toCamera, diffused, roughness, mirrored);
  }
  color += sceneBuffer.ambientLight.rgb * albedo.rgb;

  outColor = vec4(clamp(pow(color, vec3(1 / 2.2)), vec3(0), vec3(1)), albedo.a);
  outSegments = vec4(objectDataBuffer.segmentation.y / 255.0, 0, 0, 1);
}
