// An exported directory as a function from a sentence to scores, all of it in the browser.

import { Tokenizer } from "@huggingface/tokenizers";
import { InferenceSession, Tensor } from "onnxruntime-web/wasm";

/**
 * Open what `cofi-deploy export --format onnx` wrote.
 *
 * @param {string} directory Its address, relative to the page.
 * @returns {Promise<(text: string) => Promise<{label: string, score: number}[]>>} The classifier;
 *   it answers with every label, the most probable first. Scores add up to 1.
 */
export async function loadClassifier(directory) {
  const manifest = await (await download(`${directory}/export.json`)).json();
  if (manifest.kind !== "text-classification") {
    throw new Error(`${directory} is for ${manifest.kind}, this page is for text-classification`);
  }
  const [model, tokenizerFile, tokenizerConfig] = await Promise.all([
    download(`${directory}/model.onnx`).then((response) => response.arrayBuffer()),
    download(`${directory}/tokenizer.json`).then((response) => response.json()),
    download(`${directory}/tokenizer_config.json`).then((response) => response.json()),
  ]);
  const session = await InferenceSession.create(model);
  const tokenizer = new Tokenizer(tokenizerFile, tokenizerConfig);
  const limits = [manifest.arch.max_positions, tokenizerConfig.model_max_length ?? Infinity];
  const maxLength = Math.min(...limits);

  return async (text) => {
    const encoded = tokenizer.encode(text, { return_token_type_ids: true });
    const inputs = {
      input_ids: row(encoded.ids, maxLength),
      attention_mask: row(encoded.attention_mask, maxLength),
      token_type_ids: row(encoded.token_type_ids, maxLength),
    };
    // Families differ: DistilBERT and RoBERTa have no token types.
    const feeds = Object.fromEntries(session.inputNames.map((name) => [name, inputs[name]]));
    const { logits } = await session.run(feeds);
    const scores = softmax(Array.from(logits.data));
    return manifest.labels
      .map((label, index) => ({ label, score: scores[index] }))
      .sort((one, other) => other.score - one.score);
  };
}

async function download(address) {
  const response = await fetch(address);
  if (!response.ok) {
    throw new Error(`${address}: ${response.status} ${response.statusText}`);
  }
  return response;
}

// One row of 64-bit integers. A text that is too long loses its end, but not the closing [SEP].
function row(values, maxLength) {
  const isLong = values.length > maxLength;
  const kept = isLong ? [...values.slice(0, maxLength - 1), values.at(-1)] : values;
  return new Tensor("int64", BigInt64Array.from(kept, BigInt), [1, kept.length]);
}

function softmax(logits) {
  const largest = Math.max(...logits);
  const powers = logits.map((logit) => Math.exp(logit - largest));
  const sum = powers.reduce((total, power) => total + power, 0);
  return powers.map((power) => power / sum);
}
