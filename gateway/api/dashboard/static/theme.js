// Light, dark, or as the system has it; remembered in this browser.

const KEY = "blockgate-theme";
const CHOICES = ["auto", "light", "dark"];
const WORDS = { auto: "as the system", light: "light", dark: "dark" };

export function startTheme(button, changed) {
  const system = window.matchMedia("(prefers-color-scheme: dark)");
  let choice = CHOICES.includes(localStorage.getItem(KEY)) ? localStorage.getItem(KEY) : "auto";
  const apply = () => {
    const dark = choice === "dark" || (choice === "auto" && system.matches);
    document.documentElement.dataset.theme = dark ? "dark" : "light";
    button.textContent = choice[0].toUpperCase() + choice.slice(1);
    button.setAttribute("aria-label", `Colour theme: ${WORDS[choice]}`);
    changed();
  };
  system.addEventListener("change", apply);
  button.addEventListener("click", () => {
    choice = CHOICES[(CHOICES.indexOf(choice) + 1) % CHOICES.length];
    localStorage.setItem(KEY, choice);
    apply();
  });
  apply();
}
