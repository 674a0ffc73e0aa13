/** @file Keeps the conversation of this tab over a reload: in sessionStorage, or in IndexedDB if it is large. */

const ENTRY = "sama.conversation";
const LARGE = "large:"; // what stands before the name of an entry of IndexedDB
const WRITTEN = "written:"; // what stands before it in the entry of IndexedDB with the time of its last write
const KEPT_DAYS = 7;

/** @template T @param {IDBRequest<T>} request @returns {Promise<T>} */
const done = (request) =>
  new Promise((resolve, reject) => {
    request.onsuccess = () => resolve(request.result);
    request.onerror = () => reject(request.error);
  });

/**
 * What some work in the entries of IndexedDB returns, after all that it wrote is there: a transaction can fail after
 * each of its requests has succeeded, for instance where the disk is full.
 * @template T
 * @param {(entries: IDBObjectStore) => Promise<T>} work
 * @returns {Promise<T>}
 */
async function inLargeEntries(work) {
  const opened = indexedDB.open("sama", 1);
  opened.onupgradeneeded = () => opened.result.createObjectStore("conversations");
  const database = await done(opened);
  try {
    const change = database.transaction("conversations", "readwrite");
    const written = new Promise((resolve, reject) => {
      change.oncomplete = () => resolve(null);
      change.onabort = () => reject(change.error);
    });
    const [found] = await Promise.all([work(change.objectStore("conversations")), written]);
    return found;
  } finally {
    database.close();
  }
}

// New in every load of the page: a duplicated tab has a copy of our sessionStorage, but writes to a place of its own
const name = `${Date.now()} ${crypto.getRandomValues(new Uint32Array(2)).join("")}`;

/** Keeps a conversation. @param {object} conversation anything that JSON can hold */
export async function keep(conversation) {
  const text = JSON.stringify(conversation);
  try {
    sessionStorage.setItem(ENTRY, text);
  } catch {
    // Larger than the browser allows, which is about five million characters
    await inLargeEntries((entries) => {
      entries.put(Date.now(), WRITTEN + name);
      return done(entries.put(text, name));
    });
    sessionStorage.setItem(ENTRY, LARGE + name);
  }
}

/** The conversation that was kept in this tab. @returns {Promise<any>} null if there is none */
export async function kept() {
  let text = sessionStorage.getItem(ENTRY) ?? "null";
  if (text.startsWith(LARGE)) {
    const key = text.slice(LARGE.length);
    text = (await inLargeEntries((entries) => done(entries.get(key)))) ?? "null";
  }
  return JSON.parse(text);
}

/** Deletes what tabs that are closed left in IndexedDB: what was not written for days, except this tab's own. */
export async function sweep() {
  const oldest = Date.now() - KEPT_DAYS * 86_400_000;
  await inLargeEntries(async (entries) => {
    for (const key of /** @type {string[]} */ (await done(entries.getAllKeys()))) {
      if (key.startsWith(WRITTEN) || LARGE + key === sessionStorage.getItem(ENTRY)) continue;
      const written = (await done(entries.get(WRITTEN + key))) ?? parseInt(key); // earlier pages wrote the name alone
      if (written >= oldest) continue;
      entries.delete(key);
      entries.delete(WRITTEN + key);
    }
  });
}
