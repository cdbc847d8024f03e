// Opens the dashboard in a headless browser and prints, as JSON, what is on it. Commands come as lines of JSON
// on standard input, and each is answered by a line:
//
//   { "open": URL, "width": 1280, "height": 900, "dark": false }
//   { "values": [selector, ...] }      the values (or texts) of elements
//   { "charts": true }                 the paths of all charts
//   { "layout": true }                 how wide the page is, and its window
//   { "problems": true }               what the console said as warning or error, and requests elsewhere
//   { "outline": true }                landmarks, headings and names as a screen reader meets them
//   { "choose": selector }             a radio button
//   { "screenshot": path }             what is in the window
//
// CHROMIUM names the browser.

import { createInterface } from "node:readline";
import { chromium } from "playwright-core";

const browser = await chromium.launch({
  executablePath: process.env.CHROMIUM ?? "/usr/bin/chromium",
  args: ["--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage"],
});
let context, page, origin;
const problems = [];

const commands = {
  async open({ open, width, height, dark }) {
    await context?.close();
    context = await browser.newContext({
      viewport: { width, height },
      colorScheme: dark ? "dark" : "light",
      deviceScaleFactor: 1,
    });
    page = await context.newPage();
    origin = new URL(open).origin;
    page.on("console", (said) => {
      if (["error", "warning"].includes(said.type())) problems.push(`console: ${said.text()}`);
    });
    page.on("pageerror", (error) => problems.push(`script: ${error}`));
    page.on("request", (request) => {
      if (new URL(request.url()).origin !== origin) problems.push(`elsewhere: ${request.url()}`);
    });
    page.on("response", (response) => {
      if (!response.ok()) problems.push(`${response.status()}: ${response.url()}`);
    });
    await page.goto(open);
    // Its first figures are there.
    await page.waitForSelector("#volumes tr");
    await page.waitForSelector("#throughput .line", { state: "attached" });
    return true;
  },
  values: ({ values }) => page.evaluate((selectors) => selectors.map((selector) => {
    const found = document.querySelector(selector);
    return found && { value: found.value ?? null, text: found.textContent };
  }), values),
  charts: () => page.evaluate(() => Object.fromEntries(
    [...document.querySelectorAll("svg.chart")].map((chart) => [
      chart.id, [...chart.querySelectorAll(".line")].map((line) => line.getAttribute("d"))]))),
  layout: () => page.evaluate(() => ({
    page: document.documentElement.scrollWidth,
    window: document.documentElement.clientWidth,
  })),
  problems: () => problems,
  outline: () => page.evaluate(() => {
    const name = (e) => e.getAttribute("aria-label") ??
      (e.getAttribute("aria-labelledby") ?? "").split(" ").filter(Boolean)
        .map((id) => document.getElementById(id)?.textContent.trim() ?? "MISSING").join(" ");
    return {
      lang: document.documentElement.lang,
      landmarks: [...document.querySelectorAll("header, main, footer, section")].map((e) => `${e.tagName.toLowerCase()} ${name(e)}`.trim()),
      headings: [...document.querySelectorAll("h1, h2, h3")].map((e) => Number(e.tagName[1])),
      images: [...document.querySelectorAll("[role=img]")].map(name),
      unnamed_fields: [...document.querySelectorAll("input")].filter((e) => !e.labels.length || !e.closest("fieldset")?.querySelector("legend")).length,
      unscoped_headers: [...document.querySelectorAll("th")].filter((e) => !e.scope).length,
      live: [...document.querySelectorAll("[aria-live], [role=status], [role=alert]")].map((e) => e.id),
    };
  }),
  async choose({ choose }) {
    await page.locator(choose).check({ force: true });
    return true;
  },
  async screenshot({ screenshot }) {
    await page.screenshot({ path: screenshot });
    return true;
  },
};

for await (const line of createInterface({ input: process.stdin })) {
  const given = JSON.parse(line);
  const name = Object.keys(commands).find((command) => command in given);
  try {
    console.log(JSON.stringify({ ok: await commands[name](given) }));
  } catch (error) {
    console.log(JSON.stringify({ error: String(error) }));
  }
}
await browser.close();
