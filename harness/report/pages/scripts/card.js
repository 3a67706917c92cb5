// "My card": what of the study fits a card of so many GiB, at another batch and length too.
//
// A record has the peak of a training step by kind of tensor. Weights, adapters and the optimizer's state do not depend
// on the batch. What else there is (activations, and gradients while they live) is at every moment of a step a part that
// does not depend on the batch either, and a part in proportion to its tokens; the record does not say how much is which.
// So at r times as many tokens the rest is between 1 and r times what was measured, whichever is less or more, and never
// below all gradients. A setting fits if the higher end does, and does not if the lower end does not.
const card = (() => {
  for (const name of ["gib", "batch", "length"]) state.declare(name, "");
  const positive = (name) => (Number(state.get(name)) > 0 ? Number(state.get(name)) : null);

  // By how much the tokens of a micro-batch grow, at least and at most; null if the record does not say.
  function growth(setting) {
    const [batch, length] = [positive("batch"), positive("length")];
    if (batch === null && length === null) return [1, 1];
    if (!setting.tokens) return null;
    const [measured, mean, most] = setting.tokens; // the probed batch, the largest, has between mean and most
    if (length === null) return [batch / measured, batch / measured];
    const tokens = (batch ?? measured) * length;
    return [tokens / most, tokens / mean];
  }

  // Bytes needed, at least and at most, or null.
  function need(setting) {
    const ratio = growth(setting);
    if (ratio === null || setting.untuned) return null;
    const kinds = setting.memory;
    const split = kinds.weights !== null;
    const peak = study.value("train_allocated_peak", setting.index) ?? study.value("train_reserved_p99", setting.index);
    if (!split && peak === null) return null;
    const fixed = split ? kinds.weights + kinds.adapters + kinds.optimizer : 0;
    const rest = split ? kinds.gradients + kinds.activations : peak;
    const low = Math.max(rest * Math.min(1, ratio[0]), kinds.gradients_all ?? 0);
    const high = Math.max(rest * Math.max(1, ratio[1]), low);
    return ratio[0] === 1 && ratio[1] === 1
      ? [fixed + rest, fixed + rest].map((sum) => sum + (kinds.beside ?? 0))
      : [fixed + low, fixed + high].map((sum) => sum + (kinds.beside ?? 0));
  }

  // "yes", "no", "perhaps", or null without a card or a measurement.
  function fits(setting) {
    const size = positive("gib");
    const needed = size === null ? null : need(setting);
    if (!needed) return null;
    const room = size * 2 ** 30;
    return needed[1] <= room ? "yes" : needed[0] > room ? "no" : "perhaps";
  }

  function sentence(setting) {
    const answer = fits(setting);
    if (!answer) return "";
    const [low, high] = need(setting).map(bytes);
    const said = { yes: "Fits", no: "Does not fit", perhaps: "May fit" }[answer];
    return `${said} ${state.get("gib")} GiB: needs ${low === high ? low : `${low} to ${high}`}.`;
  }

  function build(panel) {
    const fields = [["gib", "Memory of my card (GiB)", "any"], ["batch", "Micro-batch", "1"], ["length", "Tokens per sequence", "1"]];
    for (const [name, label, step] of fields) {
      const input = element("input", {
        type: "number", min: "0", step, id: `card-${name}`, placeholder: name === "gib" ? "24" : "as measured",
        oninput: () => state.set({ [name]: input.value }, true),
      });
      panel.append(element("span", { class: "field" }, element("label", { for: input.id }, label), input));
      state.onchange((names) => { if (names.has(name) && input.value !== state.get(name)) input.value = state.get(name); });
    }
    const output = element("output");
    panel.append(output);
    state.onchange(() => {
      const counts = d3.rollup(study.settings, (group) => group.length, fits);
      const parts = [["yes", "fit"], ["perhaps", "may fit"], ["no", "do not fit"]];
      const said = parts.filter(([answer]) => counts.has(answer)).map(([answer, text]) => `${counts.get(answer)} ${text}`);
      output.value = positive("gib") ? `${said.join(", ") || "Nothing measured at this batch"}` : "";
    });
  }

  return { build, fits, need, sentence };
})();
