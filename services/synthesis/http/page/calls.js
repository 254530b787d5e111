// The calls that make the same sound from a program.

const quoted = (text) => `'${text.replaceAll("'", `'\\''`)}'`;

const python = (value) => {
  if (value === true) return "True";
  if (value === false) return "False";
  return JSON.stringify(value);
};

export function curl(origin, body, token) {
  const lines = [
    `curl ${origin}/v1/audio/speech`,
    ...(token ? ['-H "Authorization: Bearer $VITS_TOKEN"'] : []),
    "-H 'Content-Type: application/json'",
    `-d ${quoted(JSON.stringify({ ...body, response_format: "wav" }))}`,
    "-o speech.wav",
  ];
  return lines.join(" \\\n  ");
}

export function openai(origin, body, token) {
  const { input, voice, speed, ...ours } = body;
  const key = token ? 'os.environ["VITS_TOKEN"]' : '"none"';
  const extra = Object.entries(ours).map(([name, value]) => `${JSON.stringify(name)}: ${python(value)}`);
  return `${token ? "import os\n\n" : ""}from openai import OpenAI

client = OpenAI(base_url=${python(`${origin}/v1`)}, api_key=${key})
with client.audio.speech.with_streaming_response.create(
    model="vits",
    voice=${python(voice ?? "alloy")},
    input=${python(input)},
    speed=${python(speed ?? 1)},
    response_format="wav",${extra.length ? `\n    extra_body={${extra.join(", ")}},` : ""}
) as answer:
    answer.stream_to_file("speech.wav")`;
}

export function grpcurl(address, body, token) {
  const { input, speed, speaker, seed, ...same } = body;
  const request = { text: input, ...same, audio_format: "AUDIO_FORMAT_WAV" };
  if (speed !== undefined) request.speaking_rate = speed;
  if (speaker !== undefined) request.speaker = String(speaker);
  if (seed !== undefined) request.seed = String(seed);
  const header = token ? ' \\\n  -H "authorization: Bearer $VITS_TOKEN"' : "";
  return `grpcurl -plaintext${header} \\
  -d ${quoted(JSON.stringify(request))} \\
  ${address} vits.synthesis.v1.SynthesisService/Synthesize \\
  | jq -r .audio | base64 -d > speech.wav`;
}
