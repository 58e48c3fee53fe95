// A screenshot of a viewer's page, taken in headless Chromium:
//   npm install playwright-core && node tests/viewer_screenshot.mjs http://127.0.0.1:8080 view.png [Depth] [Photos]
// The third word chooses what is shown (Colour, Depth, Normals, Opacity), the fourth shows the photographs' frusta.
// CHROMIUM names the browser (/usr/bin/chromium); WebGL runs on the processor, so no display or GPU is needed.
import { mkdtempSync, rmSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { chromium } from 'playwright-core';

const [url, output, channel = 'Colour', photos] = process.argv.slice(2);
const profile = mkdtempSync(join(tmpdir(), 'polyfield-viewer-'));
const browser = await chromium.launchPersistentContext(profile, {
  executablePath: process.env.CHROMIUM ?? '/usr/bin/chromium',
  headless: true,
  viewport: { width: 1280, height: 720 },
  args: ['--no-sandbox', '--use-gl=angle', '--use-angle=swiftshader', '--enable-unsafe-swiftshader', '--disable-quic',
    '--no-first-run', '--disable-background-networking', '--disable-component-update', '--disable-sync'],
});
const page = await browser.newPage();
await page.goto(url);
await page.getByText('Software WebGL rendering detected').locator('xpath=../..').getByRole('button').click({ timeout: 5000 }).catch(() => {});
if (channel !== 'Colour') {
  await page.locator('input.mantine-Select-input:visible').first().click();
  await page.getByRole('option', { name: channel }).click();
}
if (photos) {
  await page.getByText('Photos', { exact: true }).click();
  await page.getByText(/\d+ photographs/).waitFor({ timeout: 120000 });
  await page.waitForTimeout(2000); // the folder opens
  await page.locator('input[type=checkbox]:visible').first().click({ force: true });
  await page.mouse.move(500, 500);
  for (let i = 0; i < 3; i++) await page.mouse.wheel(0, 300);
  await page.waitForTimeout(2000);
}
await page.getByText(/· sharp ·/).waitFor({ timeout: 120000 });
await page.waitForTimeout(1500); // the browser decodes the picture
await page.screenshot({ path: output, ...(output.endsWith('.jpg') ? { type: 'jpeg', quality: 85 } : {}) });
await browser.close();
rmSync(profile, { recursive: true, force: true });
