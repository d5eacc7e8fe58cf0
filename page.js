const requestsPerKind = 100; // as many as Caddy keeps
const rowsShown = 100;
const drawEvery = 500; // milliseconds, at least
const senderTimeout = 10; // seconds, after which BuzzBip disconnects
const recently = 600; // seconds, for judging signatures
const forgedShare = 0.05; // of all requests: less is what any address on the internet gets
const summaryEvery = 5; // seconds, at least
const eventsShown = 50;
const chartSteps = 24; // steps of the history of which a chart shows a multiple, so that its axis has round times
const longestPress = 3000; // milliseconds

const meanings = {
	delivered: "the backend answered 2xx",
	stored: "in the inbox, to be delivered later",
	duplicate: "an event with this ID was delivered before",
	ignored: "the event type is not among events",
	in_flight: "in_flight: a duplicate that arrived during the delivery",
	failed: "the backend did not answer 2xx",
	conflict: "an event with this ID was delivered before, with another body",
	rejected: "see the reason",
};
const labels = {in_flight: "asked to retry", not_delivered: "not delivered"};
const good = ["delivered", "duplicate", "ignored"], bad = ["failed", "in_flight"], rejected = ["rejected", "conflict"];
const causes = {
	unreachable: "unreachable", timeout: "no answer in time", connection_broken: "connection broken", canceled: "canceled",
	unhandled: "no handler answered", panic: "a handler panicked",
};
const hints = { // what to do about a reason or a cause
	method_not_allowed: "Not BuzzBip, which sends POST.",
	signature_missing: "Not BuzzBip, or a proxy removes the header X-BuzzBip-Signature.",
	signature_malformed: "Not BuzzBip, or a proxy changes the header X-BuzzBip-Signature.",
	signature_mismatch: "A wrong secret, a body that was changed on its way, or a forgery: caddy buzzbip explain tells.",
	body_too_large: "Increase max_body_size if these are from BuzzBip.",
	body_timeout: "The sender or the network is slow.",
	body_incomplete: "The sender disconnected.",
	envelope_invalid: "Signed, but not as BuzzBip documents: envelope lenient asks for less.",
	event_stale: "Older than max_age: late retries, or a replay.",
	event_from_future: "Check the clock of this machine.",
	in_flight: "The backend is slow: duplicates wait for the first delivery.",
	store_unavailable: "The store of IDs or the inbox is down: see the alarms.",
	store_full: "Increase the capacity of the store.",
	overloaded: "Events under way take all of max_in_flight: see whether the backend hangs.",
	unhandled: "No route answers this request: is there a reverse_proxy?",
	conflict: "Ask BuzzBip; change the secret if they did not send it.",
	unreachable: "Start the backend, or correct its address.",
	timeout: "The backend hangs or is slow.",
	connection_broken: "The backend ended the connection, or does not speak HTTP.",
	status_3xx: "Redirects are not followed: correct the URL of the backend.",
	status_4xx: "The backend rejects the event: see its log.",
	status_5xx: "The backend fails: see its log.",
	panic: "See the log of Caddy.",
};

const $ = (selector, within = document) => within.querySelector(selector);
const element = (tag, properties = {}, ...children) => {
	const made = Object.assign(document.createElement(tag), properties);
	made.append(...children);
	return made;
};
const cell = (className, ...contents) => element("td", {className}, ...contents);
const row = (...cells) => element("tr", {}, ...cells.map(c => c instanceof HTMLTableCellElement ? c : cell("", c)));
const nothing = (columns, text) => row(element("td", {colSpan: columns, className: "empty", textContent: text}));
const button = (textContent, onclick, properties = {}) => element("button", {type: "button", textContent, onclick, ...properties});
const toned = (made, tone) => (made.style.setProperty("--tone", `var(--${tone}, var(--soft))`), made);
const badge = (state, title = meanings[state] ?? "", before = "") => toned(element("span", {className: "badge", textContent: before + (labels[state] ?? state), title}), state);
const scopeCell = (name, store) => cell("name", name, element("div", {className: "soft", textContent: store}));

const number = n => n.toLocaleString("en");
const events = n => `${number(n)} event${n === 1 ? "" : "s"}`;
const sum = (list, of) => list.reduce((total, item) => total + (of(item) ?? 0), 0);
const round = n => number(Math.round(n * 10) / 10);
const rate = (perSecond, scale = perSecond) => !perSecond ? "0" : scale >= 1 ? `${round(perSecond)}/s` : `${round(perSecond * 60)}/min`;
const took = seconds => seconds < 0.001 ? "<1 ms" : seconds < 1 ? `${Math.round(seconds * 1000)} ms` : `${seconds.toFixed(1)} s`;
const size = bytes => bytes < 1024 ? `${bytes} B` : bytes < 1 << 20 ? `${(bytes / 1024).toFixed(1)} KiB` : `${(bytes / (1 << 20)).toFixed(1)} MiB`;
const span = seconds => {
	for (const [unit, length] of [["d", 86400], ["h", 3600], ["min", 60]])
		if (seconds >= length) return `${Math.floor(seconds / length)} ${unit}`;
	return `${Math.max(0, Math.floor(seconds))} s`;
};
const secret = label => /^\d+$/.test(label) ? `secret ${label}` : label; // one without a label

// Times are local ones, by the clock of Caddy's machine.
let ahead = -Infinity; // Caddy's clock, in milliseconds
const now = () => Date.now() + (ahead === -Infinity ? 0 : ahead);
const since = time => (now() - new Date(time)) / 1000;
const ago = time => `${span(since(time))} ago`;
const zone = time => {
	const minutes = -new Date(time).getTimezoneOffset();
	return !minutes ? "UTC" : `UTC${minutes < 0 ? "-" : "+"}${Math.floor(Math.abs(minutes) / 60)}${minutes % 60 ? ":" + String(Math.abs(minutes) % 60).padStart(2, "0") : ""}`;
};
const day = time => new Date(time).toLocaleDateString("sv");
const clock = time => `${day(time) === day(now()) ? "" : day(time) + " "}${new Date(time).toLocaleTimeString("en-GB")}`;
const when = time => `${clock(time)} ${zone(time)}`;
const timeOf = (time, text = clock(time)) => element("time", {dateTime: time, title: `${new Date(time).toISOString()}, ${when(time)}`, textContent: text});

// What Caddy has told.
let status, requests = [], summary = [], summaryAt = -Infinity;
let offline = false, offlineSince;
const steps = new Map(); // of the history, by number
const inbox = () => status.inboxes.find(i => i.inbox === $("#which").value) ?? status.inboxes[0];

// show makes a parent show items, each as the element that make returns. The element
// stays while its item looks the same, so it can be clicked, and keeps the focus.
const show = (parent, items, keyOf, make, lookOf = JSON.stringify) => {
	const before = parent.shown ?? new Map(), after = parent.shown = new Map();
	const focused = parent.contains(document.activeElement) ? document.activeElement : null;
	const [focusedKey] = [...before].find(([, old]) => old.element.contains(focused)) ?? [];
	for (const item of items) {
		const key = keyOf(item), look = lookOf(item), old = before.get(key);
		after.set(key, old?.look === look ? old : {look, element: label(make(item), parent)});
	}
	for (const [key, {element}] of before) if (after.get(key)?.element !== element) element.remove();
	let at = parent.firstElementChild;
	for (const {element} of after.values()) {
		if (element === at) at = at.nextElementSibling;
		else parent.insertBefore(element, at);
	}
	if (focused && !parent.contains(focused))
		[...after.get(focusedKey)?.element.querySelectorAll("button") ?? []].find(b => b.textContent === focused.textContent)?.focus({preventScroll: true});
};
// label names the cells by their columns, for small screens.
const label = (made, parent) => {
	const heads = parent.parentElement?.tHead?.rows[0].cells;
	if (heads) for (const [i, c] of [...made.cells].entries()) if (c.colSpan === 1) c.dataset.label = heads[i].textContent;
	return made;
};

// The state of things, from the last hour.
const last = seconds => [...steps.values()].filter(s => s.n > status.last - Math.ceil(seconds / status.history.step));
const resultsOf = (list, names) => sum(list, s => sum(names, r => s.results?.[r]));
const all = Object.keys(meanings);
const isFailure = d => d.cause || d.result === "failed";
const lastOf = (...kinds) => requests.find(d => kinds.includes(d.kind));
const assess = () => {
	const minute = last(60), window = last(recently);
	const lastMatch = status.overview?.secrets.map(s => s.last_match).filter(Boolean).sort().at(-1);
	// the one may know of an acceptance that the other does not
	const accepted = [status.accepted, lastOf("delivered", "redelivered")?.time].filter(Boolean).map(t => new Date(t)).sort((a, b) => a - b).at(-1);
	const failed = requests.find(isFailure);
	const mismatches = status.problems.filter(p => p.reason === "signature_mismatch" && since(p.last) < recently);
	const state = {
		minute, lastMatch, accepted, failed, mismatches,
		verified: resultsOf(minute, all) - sum(minute, s => s.unverified),
		unverified: sum(minute, s => s.unverified),
		badSignatures: sum(window, s => s.signature),
		attempts: sum(minute, s => s.accepted), failures: sum(minute, s => s.failed),
		waiting: sum(status.inboxes, i => i.waiting), dead: sum(status.inboxes, i => i.dead),
		paused: status.inboxes.find(i => i.paused)?.paused,
	};
	state.reachable = lastMatch && since(lastMatch) < recently;
	state.secretWrong = mismatches.length > 0 && !state.reachable;
	const failures = requests.filter(d => isFailure(d) && new Date(d.time) > (accepted ?? 0));
	state.lastFailed = failures.length > 0;
	// one event that fails says little of the backend, unless that was not there
	state.backendDown = (failures.length > 1 || failures.length && (!accepted || !failed.status)) && !sum(last(20), s => s.accepted) && (since(failed.time) < recently || state.waiting > 0);
	state.forged = state.badSignatures > forgedShare * resultsOf(window, all);
	return state;
};
const whyFailed = d => d.status ? d.error || `answered ${d.status}` : (causes[d.cause] ?? d.cause ?? "not accepted") + (d.error ? `: ${d.error}` : "");
const why = d => [
	d.would_be && `would be ${labels[d.would_be] ?? d.would_be}`,
	d.attempt && `redelivery ${d.attempt}`,
	d.reason && (d.cause ? "" : d.reason),
	d.cause && whyFailed(d),
	d.remote && `from ${d.remote}`,
].filter(Boolean).join(", ");

// Alarms: what happened, what follows from it, and what to do.
const banners = state => {
	const list = [];
	const add = (tone, what, consequence, next, action) => list.push({tone, what, consequence, next, action});
	if (offline) add("bad", "No connection to Caddy", offlineSince ? `This page shows what was known at ${when(offlineSince)}.` : "There is nothing to show.", "See whether Caddy runs; the page keeps trying to connect.");
	if (!status) return list;
	if (!status.overview) {
		add("bad", "The running configuration has no buzzbip_webhook", "Nothing here verifies, deduplicates or delivers webhooks.", "Add the directive to the site, and reload Caddy.");
		return list;
	}
	if (status.overview.not_enforced)
		add("warn", "Nothing is enforced: a handler has enforce off", "Forged requests and duplicates reach its backend.", "When caddy buzzbip report looks right, remove enforce off.");
	for (const s of status.overview.stores) {
		if (s.up) continue;
		const rejects = status.problems.some(p => p.reason === "store_unavailable" && since(p.last) < 60);
		add("bad", `The store ${s.store} is down: ${s.error}`, rejects ? "Requests are rejected with 503; BuzzBip retries them up to 5 times." :
			"Until it is back, Caddy remembers IDs in its memory only: other instances, or Caddy after a restart, may deliver events twice.", "Repair the store; Caddy continues by itself.");
	}
	for (const i of status.inboxes)
		if (i.error) add("bad", `The inbox is down: ${i.error}`, "What the backend does not take is not kept: BuzzBip gets the failure, and retries up to 5 times.", "Check the disk and the file; Caddy continues by itself.");
	if (state.secretWrong)
		add("bad", "No signature is right", `${state.lastMatch ? `The last one was at ${when(state.lastMatch)}. ` : ""}Events ${state.mismatches[0].would_be ? "would be" : "are"} rejected with 401, unless these are forgeries.`, "Compare the secret with the one that BuzzBip shows for this webhook.");
	if (state.backendDown)
		add("bad", `The backend does not accept events: ${whyFailed(state.failed)}`, status.inboxes.length ? "Events are stored and acknowledged, and delivered once it accepts." :
			"BuzzBip gets the failures, and retries each event up to 5 times; then it is lost.", hints[state.failed.cause] ?? "See the log of the backend.");
	for (const i of status.inboxes)
		if (i.paused) add("warn", `Redelivery is paused since ${when(i.paused)}`, `New events are stored without being tried: nothing reaches the backend. ${events(i.waiting)} wait${i.waiting === 1 ? "s" : ""}.`,
			"Resume when the backend is ready.", {text: "Resume redelivery", inbox: i.inbox});
	if (status.problems.some(p => p.reason === "overloaded" && since(p.last) < 60))
		add("warn", "Events are rejected, because those under way take all of max_in_flight", "BuzzBip gets 503, and retries up to 5 times.", hints.overloaded);
	if (state.dead)
		add("warn", state.dead === 1 ? "1 event is dead" : `${events(state.dead)} are dead`, "The backend has not accepted them, and they are not delivered again.", "See why below; then retry or discard them.");
	return list;
};
const drawBanners = state => {
	const list = banners(state);
	show($("#banners"), list, b => b.what.replace(/\d+/g, "") + b.action?.inbox, b => element("div", {className: `banner ${b.tone}`},
		element("p", {}, element("strong", {textContent: `${b.what}. `}), `${b.consequence} `, element("em", {textContent: `Next: ${b.next}`})),
		...b.action ? [button(b.action.text, () => setPaused(b.action.inbox, false))] : []));
	const worst = list.some(b => b.tone === "bad") ? "bad" : list.length ? "warn" : "good";
	$("#live").className = status || offline ? worst : "";
	const text = offline ? "no connection" : !status ? "connecting…" : list.length ? `live, ${list.length} alarm${list.length > 1 ? "s" : ""}` : "live";
	if ($("#live").textContent !== text) $("#live").textContent = text;
	$("main").classList.toggle("stale", offline);
	document.title = `${list.length ? `(${list.length}) ` : ""}BuzzBip webhooks`;
};

// The first four questions in an incident.
const answers = state => {
	const reaching = {question: "Is BuzzBip reaching us?"}, signed = {question: "Are its signatures right?"};
	const accepting = {question: "Does the backend accept?"}, waits = {question: "What waits?"};
	if (state.verified) Object.assign(reaching, {tone: "good", verdict: `Yes, ${rate(state.verified / 60)}`, facts: `Last event ${ago(state.lastMatch)}`});
	else if (state.unverified && !state.reachable) Object.assign(reaching, {tone: "warn", verdict: "Not proven", facts: `${rate(state.unverified / 60)}, none with a right signature`});
	else if (state.lastMatch) Object.assign(reaching, state.reachable ? {tone: "good", verdict: "Yes", facts: `Last event ${ago(state.lastMatch)}`} :
		{tone: "calm", verdict: `Not for ${span(since(state.lastMatch))}`, facts: "To test the way: caddy buzzbip check <url>"});
	else Object.assign(reaching, {tone: "calm", verdict: "Not yet", facts: "Check the URL in BuzzBip. To send an event: caddy buzzbip send <url>"});
	if (state.unverified && (state.verified || state.reachable)) reaching.facts += `; ${rate(state.unverified / 60)} without a right signature`;

	const match = status.overview.secrets.find(s => s.last_match === state.lastMatch);
	if (state.secretWrong) Object.assign(signed, {tone: "bad", verdict: "No", facts: `${number(state.badSignatures)} wrong in 10 min, from ${state.mismatches[0].remote ?? "many addresses"}${state.mismatches.length > 1 ? " and others" : ""}`});
	else if (!state.lastMatch) Object.assign(signed, {tone: "calm", verdict: "Nothing to judge yet", facts: "No secret has matched since Caddy started"});
	else Object.assign(signed, {tone: state.forged ? "warn" : "good", verdict: state.forged ? "Yes, but not all" : "Yes",
		facts: `By ${secret(match.secret)}, ${ago(state.lastMatch)}` + (state.badSignatures ? `; ${number(state.badSignatures)} wrong in 10 min` : "")});

	if (state.backendDown) Object.assign(accepting, {tone: "bad", verdict: "No", facts: `${whyFailed(state.failed)}; ` + (state.accepted ? `last acceptance ${ago(state.accepted)}` : "none accepted yet")});
	else if (!state.accepted && !state.failed) Object.assign(accepting, {tone: "calm", verdict: "Nothing delivered yet", facts: "since Caddy started"});
	else if (state.lastFailed && !state.failures) Object.assign(accepting, {tone: "warn", verdict: "Not the last one", facts: `${whyFailed(state.failed)}, ${ago(state.failed.time)}`});
	else if (state.failures) Object.assign(accepting, {tone: "warn", verdict: `Partly: ${number(state.failures)} of ${number(state.failures + state.attempts)} fail`, facts: `in the last minute; ${whyFailed(state.failed)}`});
	else Object.assign(accepting, {tone: "good", verdict: "Yes", facts: `Last acceptance ${ago(state.accepted)}`});
	if (state.paused) accepting.facts += "; redelivery is paused";
	if (status.in_flight) accepting.facts += `; ${number(status.in_flight)} under way`;

	const earlier = last(300)[0]?.waiting ?? 0, change = state.waiting - earlier;
	const oldest = status.inboxes.map(i => i.oldest).filter(Boolean).sort()[0];
	if (!status.inboxes.length) Object.assign(waits, {tone: "calm", verdict: "No inbox", facts: "What the backend does not take is lost after BuzzBip's 5 retries"});
	else if (status.inboxes.some(i => i.error)) Object.assign(waits, {tone: "bad", verdict: "The inbox is down", facts: "see the alarm"});
	else if (state.waiting) Object.assign(waits, {tone: "warn", verdict: events(state.waiting),
		facts: `since ${oldest ? when(oldest) : "?"}${change && !state.paused ? `; ${change > 0 ? "+" : "−"}${number(Math.abs(change))} in 5 min` : ""}`});
	else if (state.dead) Object.assign(waits, {tone: "warn", verdict: `Nothing, but ${number(state.dead)} dead`, facts: "see the inbox"});
	else Object.assign(waits, {tone: "good", verdict: "Nothing", facts: "The inbox is empty"});
	if (state.waiting && state.dead) waits.facts += `; ${number(state.dead)} dead`;
	return [reaching, signed, accepting, waits];
};
const drawAnswers = state => show($("#answers"), state ? answers(state) : [], a => a.question, a => element("div", {className: `card answer ${a.tone}`},
	element("h2", {textContent: a.question}), element("b", {textContent: a.verdict}), element("p", {className: "soft", textContent: a.facts})));

// Charts of the last hour.
const svgElement = (tag, attributes) => {
	const made = document.createElementNS("http://www.w3.org/2000/svg", tag);
	for (const [name, value] of Object.entries(attributes)) made.setAttribute(name, value);
	return made;
};
const ceiling = n => { // a round number that is at least n
	const unit = 10 ** Math.floor(Math.log10(n));
	return [1, 2, 5, 10].map(m => m * unit).find(m => m >= n * 0.999);
};
const makeChart = title => {
	const figure = element("figure", {className: "card"}, element("figcaption"), element("div", {className: "plot"},
		element("div", {className: "axis y"}, element("span"), element("span"), element("span")),
		svgElement("svg", {preserveAspectRatio: "none", role: "img"}),
		element("div", {className: "axis x"}, ...Array.from({length: 5}, () => element("span")))));
	$("#charts").append(figure);
	return figure;
};
const charts = {};
// series are stacked, the first one at the bottom; each has a name, a tone and a value of a step.
const drawChart = (title, series, unit, current) => {
	const figure = charts[title] ??= makeChart(title);
	const kept = Math.min(status.history.kept, Math.ceil((status.last + 1) / chartSteps) * chartSteps), first = status.last - kept + 1;
	const list = Array.from({length: kept}, (_, i) => steps.get(first + i));
	const highest = Math.max(...list.map(s => s ? sum(series, one => one.value(s)) : 0));
	const top = ceiling(highest || 1);
	show($("figcaption", figure), [{title, current}, ...series], s => s.name ?? "", s => s.name ? toned(element("span", {className: "key", textContent: s.name}), s.tone) :
		element("b", {textContent: `${title}${s.current ? `: ${s.current}` : ""}`}));
	const [high, middle, low] = $(".y", figure).children;
	for (const [mark, value] of [[high, top], [middle, top / 2], [low, 0]]) mark.textContent = unit(value, top);
	const begin = new Date(status.history.start).getTime(), step = status.history.step * 1000;
	for (const [i, mark] of [...$(".x", figure).children].entries())
		mark.textContent = new Date(begin + (first + i * kept / 4) * step).toLocaleTimeString("en-GB", {hour: "2-digit", minute: "2-digit"}) + (i === 4 ? ` ${zone(now())}` : "");
	const svg = $("svg", figure);
	svg.setAttribute("viewBox", `0 0 ${kept} ${top}`);
	svg.setAttribute("aria-label", `${title}, the last hour: now ${current}, at most ${unit(highest, highest)}`);
	const paths = series.map((one, i) => {
		const y = (s, upTo) => top - (s ? sum(series.slice(0, upTo), other => other.value(s)) : 0);
		let d = "", reached;
		for (let x = 0; x < kept; x++) if (list[x]) {
			if (!d) d = `M${x} ${y(list[x], i + 1)}`;
			d += `V${y(list[x], i + 1)}H${x + 1}`;
			reached = x;
		}
		for (let x = reached; x >= 0 && list[x]; x--) d += `V${y(list[x], i)}H${x}`;
		const path = svgElement("path", {d: d && d + "Z"});
		path.style.fill = `var(--${one.tone})`;
		return path;
	});
	svg.replaceChildren(svgElement("path", {d: `M0 ${top / 2}H${kept}`, stroke: "var(--line)", "vector-effect": "non-scaling-stroke"}), ...paths);
};
const drawCharts = state => {
	const begin = new Date(status.history.start), {step} = status.history;
	const perSecond = (count, s) => (count ?? 0) / (s.n === status.last ? Math.max(1, Math.min(step, (new Date(status.time) - begin) / 1000 - s.n * step)) : step);
	const rateOf = names => s => perSecond(resultsOf([s], names), s);
	drawChart("Requests", [
		{name: "accepted", tone: "good", value: rateOf(good)}, {name: "stored", tone: "stored", value: rateOf(["stored"])},
		{name: "failed", tone: "bad", value: rateOf(bad)}, {name: "rejected", tone: "rejected", value: rateOf(rejected)},
	], rate, rate(resultsOf(state.minute, all) / 60));
	if (status.inboxes.length) drawChart("In the inbox", [
		{name: "dead", tone: "bad", value: s => s.dead}, {name: "waiting", tone: "stored", value: s => s.waiting},
	], n => Number.isInteger(n) ? number(n) : "", events(state.waiting + state.dead));
	else drawChart("Answers of the backend", [
		{name: "accepted", tone: "good", value: s => perSecond(s.accepted, s)}, {name: "failed", tone: "bad", value: s => perSecond(s.failed, s)},
	], rate, rate((state.attempts + state.failures) / 60));
	for (const [title, other] of [["In the inbox", "Answers of the backend"]])
		for (const name of [title, other]) if (charts[name]) charts[name].hidden = (name === title) !== status.inboxes.length > 0;
};

// What went wrong.
const drawProblems = () => show($("#problems tbody"), status.problems.length ? status.problems : [null],
	p => p ? [p.result, p.would_be, p.reason, p.cause, p.status, p.remote, p.others].join("|") : "",
	p => !p ? nothing(5, "Nothing went wrong.") : row(
		cell("", p.would_be ? badge(p.would_be, "", "would be ") : badge(p.result), ` ${p.cause ? whyFailed(p) : p.reason ?? ""} `, element("div", {className: "soft", textContent: hints[p.reason] ?? hints[p.cause] ?? hints[p.result] ?? ""}),
			...p.id ? [button(p.id, () => lookUp(p.id), {className: "id", title: `the last one: ${p.id}`})] : []),
		p.others ? "others" : p.remote ?? "",
		cell("number", number(p.count)),
		timeOf(p.since), timeOf(p.last)));

// Requests, the latest first. A flood of one kind, such as forgeries, does not
// displace the others.
let chosen = "", stopped = false, drawn = 0;
const latestOfEachKind = list => {
	const count = {};
	return list.filter(d => (count[d.kind] = (count[d.kind] ?? 0) + 1) <= requestsPerKind);
};
const requestRow = d => row(
	timeOf(d.time),
	badge(d.result),
	d.id ? button(d.id, () => lookUp(d.id, d), {className: "id", title: d.id, request: d}) : element("span", {className: "soft", textContent: "not verified"}),
	element("td", {textContent: d.type ?? "", title: d.type ?? ""}),
	element("div", {className: "why", textContent: why(d), title: why(d)}),
	element("td", {textContent: d.secret ? secret(d.secret) : "", title: d.secret ?? ""}),
	element("td", {className: d.duration > senderTimeout ? "number slow" : "number", textContent: took(d.duration), title: d.duration > senderTimeout ? "longer than BuzzBip waits" : ""}),
);
const searched = d => [d.id, d.type, d.reason, d.cause, d.would_be, why(d), d.secret, d.remote];
// Nobody can click what moves: while the list is pointed at, or has the focus, it stays.
let pointedAt = false;
const held = () => stopped ? "paused" : pointedAt ? "held while you point at it" :
	$("#requests tbody").contains(document.activeElement) ? "held while it has the focus" : "";
const drawRequests = (force = false) => {
	const newest = requests[0]?.n ?? 0, reason = held();
	const kept = reason && !force && $("#requests tbody").shown?.size;
	const text = $("#filter").value.trim().toLowerCase();
	const matching = requests.filter(d => (!chosen || (chosen === "redelivery" ? d.attempt : d.result === chosen && !d.attempt)) && (!text || searched(d).some(v => v?.toLowerCase().includes(text))));
	if (!kept) {
		drawn = newest;
		show($("#requests tbody"), matching.length ? matching.slice(0, rowsShown) : [null], d => d?.n, d => d ? requestRow(d) :
			nothing(7, requests.length ? "No matching requests." : "No requests yet. To send an event: caddy buzzbip send <url>"), d => d ? d.n : requests.length);
	}
	const fresh = requests.filter(d => d.n > drawn).length;
	$("#shown").textContent = kept ? `${reason}${fresh ? `, ${number(fresh)}${fresh >= requestsPerKind ? " or more" : ""} new` : ""}` : matching.length > rowsShown ? `the last ${rowsShown}` : matching.length < requests.length ? `${matching.length} of the last ${requests.length}` : "";
};
const buttonOf = d => {
	const buttons = [...document.querySelectorAll("#requests button.id")];
	return buttons.find(b => b.request.n === d.n) ?? buttons.find(b => b.textContent === d.id);
};
const chips = {};
for (const result of ["", ...all, "redelivery"]) {
	const count = element("b", {textContent: ""});
	const chip = button("", () => {
		chosen = result;
		for (const [name, c] of Object.entries(chips)) c.chip.ariaPressed = String(name === chosen);
		drawRequests(true);
	}, {title: meanings[result] ?? (result ? "attempts to deliver an event of the inbox again" : ""), ariaPressed: String(!result)});
	chip.dataset.result = result;
	chip.append(labels[result] ?? (result || "all"), " ", count);
	chips[result] = {chip: toned(chip, result || "text"), count};
	$("#results").append(chip);
}
const drawCounts = () => {
	for (const result of all) chips[result].count.textContent = number(resultsOf([...steps.values()], [result]));
	chips[""].count.textContent = number(resultsOf([...steps.values()], all));
	chips.redelivery.chip.hidden = !status.inboxes.length;
};
$("#filter").addEventListener("input", () => drawRequests(true));
$("#pause").addEventListener("click", ({target}) => {
	stopped = !stopped;
	target.ariaPressed = String(stopped);
	target.textContent = stopped ? "Continue" : "Pause";
	drawRequests();
});

// The desk: what waits or is dead in the inbox, and what to do with it.
const call = async (path, options) => {
	let response;
	try {
		response = await fetch(path, options);
		const answer = await response.json();
		return response.ok || answer.scopes ? answer : {error: answer.error ?? `Caddy answered ${response.status}.`};
	} catch { // no response, or not one from Caddy
		return {error: response ? `Caddy does not respond (${response.status}). Is it running?` : "No connection to Caddy or to caddy buzzbip page. Are they running?"};
	}
};
const post = (change, body, name = inbox().inbox) => call(`inbox/${change}?inbox=${encodeURIComponent(name)}`, {method: "POST", body: JSON.stringify(body)});
const tell = text => $("#told").textContent = text;
const readSummary = async () => {
	summaryAt = now();
	const answer = await call("inbox/summary");
	if (answer.inboxes) summary = answer.inboxes;
	draw();
};
// What a filter can select: not only this group, but all that ended with the same status.
const filterOf = group => ({state: [group.state], status: [group.status]});
const selectedBy = group => `${group.state}, ${group.status ? `answered ${group.status}` : "without an answer of the backend"}`;

// ask opens the dialog, and resolves to whether the answer is yes.
const confirmed = (question, consequence, yes, danger) => new Promise(done => {
	const dialog = $("#confirm");
	$("#question").textContent = question;
	$("#consequence").textContent = consequence;
	Object.assign($("#yes"), {textContent: yes, className: danger ? "danger" : ""});
	// not on "close": that event may come only after the dialog was opened again
	$("form", dialog).onsubmit = event => done(event.submitter.value === "yes");
	dialog.oncancel = () => done(false);
	dialog.showModal();
});
// change retries or discards events, after it has told how many there are.
const change = async (kind, filter, what) => {
	const name = inbox().inbox;
	filter = {...filter, until: new Date(now()).toISOString()}; // not what arrives while the question is open
	const counted = await post(kind, {...filter, dry_run: true}, name);
	if (counted.error) return tell(counted.error);
	const verb = kind === "retry" ? "Retry" : "Discard";
	if (!counted.events) return tell(`There is nothing to ${kind} any more: ${what}.`);
	if (!await confirmed(`${verb} ${events(counted.events)}?`, `${what}. ${kind === "retry" ? "They are delivered as soon as the backend accepts, with their attempts counted anew." : "They are removed: the backend never gets them, and this cannot be undone."}`,
		`${verb} ${events(counted.events)}`, kind === "discard")) return;
	const done = await post(kind, filter, name);
	tell(done.error ?? `${events(done.events)} ${kind === "retry" ? "to be delivered now" : "discarded"}.`);
	await readSummary();
	if (!$("#list").hidden) await list();
};
const setPaused = async (name, pause) => {
	if (pause && !await confirmed("Pause redelivery?", "Until somebody resumes it, new events are stored without being tried, and nothing reaches the backend. Everybody sees a banner.", "Pause", true)) return;
	const done = await post(pause ? "pause" : "resume", {}, name);
	tell(done.error ?? (pause ? "Redelivery is paused." : "Redelivery goes on."));
	await readSummary();
};
const nextOf = (time, i) => !time ? "none" : i.paused ? "paused" : new Date(time) > now() ? timeOf(time) : timeOf(time, "due");
const drawInbox = state => {
	$("#inbox").hidden = !status.inboxes.length;
	if (!status.inboxes.length) return;
	const names = status.inboxes.map(i => i.inbox);
	if ($("#which").options.length !== names.length) $("#which").replaceChildren(...names.map(name => new Option(name)));
	$("#which").hidden = names.length < 2;
	const i = inbox();
	$("#contents").textContent = `${number(i.waiting)} waiting, ${number(i.dead)} dead${i.delivered ? `, ${number(i.delivered)} delivered` : ""}, ${size(i.bytes)}${names.length < 2 ? `, in ${i.inbox}` : ""}`;
	Object.assign($("#hold"), {textContent: i.paused ? "Resume redelivery" : "Pause redelivery", onclick: () => setPaused(i.inbox, !i.paused)});
	const groups = summary.find(s => s.inbox === i.inbox)?.groups ?? [];
	show($("#groups tbody"), groups.length ? groups : [null], g => g ? [g.state, g.status, g.cause, g.error].join("|") : "", g => !g ? nothing(6, i.waiting + i.dead ? "…" : "Nothing waits, and nothing is dead.") : row(
		badge(g.state, ""), cell("", g.cause || g.status ? whyFailed(g) : `not tried yet${state.backendDown ? ", because the backend fails" : ""}`), cell("number", number(g.events)), timeOf(g.since), nextOf(g.next, i),
		cell("acts", button("Show", () => list(filterOf(g), selectedBy(g))), button("Retry", () => change("retry", filterOf(g), selectedBy(g))),
			button("Discard", () => change("discard", filterOf(g), selectedBy(g)), {className: "danger"}))),
		g => JSON.stringify([g, i.paused, i.waiting, state.backendDown, g?.next && new Date(g.next) > now()]));
};
$("#which").addEventListener("change", () => draw());

// list shows a page of the events that a filter selects.
let listing = {};
const list = async (filter = listing.filter, what = listing.what, after = 0) => {
	listing = {filter, what};
	const query = new URLSearchParams([["inbox", inbox().inbox], ["after", after], ...Object.entries(filter).flatMap(([name, values]) => values.map(v => [name, v]))]);
	const answer = await call(`inbox?${query}`);
	if (answer.error) return tell(answer.error);
	const page = answer.events.slice(0, eventsShown);
	const next = answer.events.length > eventsShown ? page.at(-1).number : answer.next;
	$("#list").hidden = false;
	$("#listed").textContent = `${what}, as of ${when(now())}`;
	Object.assign($("#next"), {hidden: !next, onclick: () => list(filter, what, next)});
	show($("#events tbody"), page.length ? page : [null], e => e?.number, e => !e ? nothing(7, "No events.") : row(
		button(e.id, () => details(e.number), {className: "id", title: e.id}), e.type, timeOf(e.arrived), cell("number", number(e.attempts)),
		cell("", e.last ? whyFailed(e.last) : "not tried yet"), nextOf(e.due, inbox()),
		cell("acts", button("Retry", () => change("retry", {number: [e.number]}, e.id)), button("Discard", () => change("discard", {number: [e.number]}, e.id), {className: "danger"}))));
	if (!$("#inbox").contains(document.activeElement) || !after) $("#listed").focus();
};
$("#every").addEventListener("click", () => list({}, "All events"));
$("#close").addEventListener("click", () => {
	$("#list").hidden = true;
	$("#hold").focus();
});

// details shows an event of the inbox, with its attempts, and its payload on demand.
const details = async n => {
	const e = await call(`inbox/${n}?inbox=${encodeURIComponent(inbox().inbox)}`);
	if (e.error) return tell(e.error);
	const attempt = a => a && `${when(a.time)}, after ${took(a.duration)}: ${a.cause ? whyFailed(a) : `accepted with ${a.status}`}`;
	const facts = {
		state: e.state, type: e.type, "order key": e.key, arrived: when(e.arrived), "arrived at": e.request && `${e.request.host}${e.request.uri}`, from: e.request?.remote_addr,
		attempts: number(e.attempts), first: e.attempts > 1 && attempt(e.first), last: attempt(e.last), next: e.due && when(e.due), settled: e.settled && when(e.settled),
	};
	let payload = e.body;
	try { payload = JSON.stringify(JSON.parse(e.body), null, 2); } catch { /* shown as it is */ }
	$("#detailed").textContent = e.id;
	$("#facts").replaceChildren(
		element("dl", {}, ...Object.entries(facts).filter(([, v]) => v).flatMap(([k, v]) => [element("dt", {textContent: k}), element("dd", {textContent: v})])),
		...e.body ? [element("details", {}, element("summary", {textContent: `Payload, ${size(new Blob([e.body]).size)}`}), element("pre", {textContent: payload, tabIndex: 0}))] : [element("p", {className: "soft", textContent: "Its payload is not kept."})]);
	const dialog = $("#details");
	$("form", dialog).onsubmit = event => {
		if (event.submitter.value) change(event.submitter.value, {number: [n]}, e.id);
	};
	dialog.showModal();
};

// Shows what Caddy knows about an event. Responses may arrive out of order, so
// only that to the latest request is shown. It is scrolled into view, because on a
// small screen it is far from the row that was clicked.
let latest;
const ask = async (method, id, from) => {
	const question = latest = {};
	const answer = [], buttons = [];
	const found = await call(`events/${encodeURIComponent(id)}`, {method});
	if (found.scopes) {
		answer.push(element("table", {}, element("tbody", {}, ...found.scopes.map(s => row(
			scopeCell(s.scope, s.store),
			method === "DELETE" ? (s.forgotten ? "forgotten" : s.forgotten === false ? "was not remembered" : "unknown") : cell("", badge(s.state, ""),
				...s.attempts ? [element("div", {className: "soft", textContent: `${number(s.attempts)} attempt${s.attempts === 1 ? "" : "s"}`})] : [],
				...s.last_failure ? [element("div", {className: "soft", textContent: `last attempt failed at ${when(s.last_failure.time)}: ${whyFailed(s.last_failure)}`})] : [],
				...s.expires ? [element("div", {className: "soft", textContent: `until ${when(s.expires)}`})] : []),
		)))));
		if (found.scopes.some(s => s.expires))
			buttons.push(button("Forget", () => forget(id, from), {className: "danger", id: "forget"}));
		if (found.scopes.some(s => s.state === "stored" || s.state === "dead"))
			buttons.push(button("Show it in the inbox", () => list({id: [id]}, id), {id: "in-inbox"}));
	}
	if (found.error) answer.push(element("p", {className: "alarm", textContent: found.error}));
	if (question !== latest) return;
	if (from) buttons.push(button("Back to the list", () => (buttonOf(from) ?? $("#filter")).focus(), {id: "back"}));
	$("#answer").replaceChildren(...answer, element("form", {}, ...buttons));
	$("#lookup").parentElement.scrollIntoView({block: "nearest"}); // instant, so there is no motion to reduce
	if (!$("#lookup").contains(document.activeElement)) $("#answer").focus({preventScroll: true});
};
const lookUp = (id, from) => {
	$("#lookup").elements.id.value = id;
	return ask("GET", id, from);
};
const forget = async (id, from) => {
	if (await confirmed(`Forget ${id}?`, "If BuzzBip sends this event again, your backend gets it again.", "Forget", true)) ask("DELETE", id, from);
};
$("#lookup").addEventListener("submit", event => {
	event.preventDefault();
	lookUp(event.target.elements.id.value);
});

const drawSide = () => {
	show($("#scopes tbody"), status.overview.scopes, s => `${s.store}|${s.scope}`, s => {
		const remembered = cell("number", number(s.delivered));
		if (s.delivered >= s.capacity / 100) remembered.append(element("meter", {min: 0, max: 1, low: 0.8, high: 0.95, optimum: 0, value: s.delivered / s.capacity, title: `${(100 * s.delivered / s.capacity).toFixed(1)}% of ${number(s.capacity)}`}));
		return row(scopeCell(s.scope || "of earlier configurations", s.store), cell("number", number(s.in_flight)), remembered);
	});
	show($("#stores"), status.overview.stores.filter(s => s.evicted), s => s.store, s => element("p", {className: "alarm",
		textContent: `The store ${s.store} has evicted ${number(s.evicted)} IDs before the end of their retention, for lack of room. Increase its capacity, or reduce the retention.`}));
	show($("#secrets tbody"), status.overview.secrets.map(s => ({...s, ago: s.last_match && ago(s.last_match)})), s => `${s.scope}|${s.secret}`, s => row(
		cell("name", secret(s.secret)), cell("name", s.scope), s.last_match ? timeOf(s.last_match, s.ago) : element("span", {className: "soft", textContent: "not yet"})));
	$("#since").textContent = `${when(now())}, running for ${span(since(status.overview.since))}`;
};

// draw shows everything anew, but not more often than anybody can read.
let due = 0, drawnAt = -Infinity, pressedAt = -Infinity;
const draw = () => {
	if (due) return;
	due = setTimeout(() => requestAnimationFrame(() => {
		due = 0;
		if (performance.now() - pressedAt < longestPress) return; // what is being clicked must not go away
		drawnAt = performance.now();
		const state = status?.overview && assess();
		drawBanners(state);
		drawRequests();
		for (const section of ["#answers", "#charts", "#desk", "#side"]) $(section).hidden = !!status && !state;
		if (!state) {
			if (status) $("#since").textContent = when(now());
			return;
		}
		drawAnswers(state);
		drawCharts(state);
		drawCounts();
		drawInbox(state);
		drawProblems();
		drawSide();
	}), Math.max(0, drawnAt + drawEvery - performance.now()));
};
for (const event of ["pointerdown", "pointerup", "pointercancel"]) document.addEventListener(event, () => {
	pressedAt = event === "pointerdown" ? performance.now() : -Infinity;
	if (event !== "pointerdown") setTimeout(draw); // after the click
});
for (const event of ["pointerenter", "pointerleave"]) $("#requests tbody").addEventListener(event, ({pointerType}) => {
	pointedAt = event === "pointerenter" && pointerType === "mouse"; // fingers do not stay
	draw();
});
$("#requests tbody").addEventListener("focusout", draw);

// An EventSource reconnects by itself, but not after an error response, which the
// relay sends while Caddy is down. So a new one is made for each connection.
const firstWait = 500, longestWait = 10000; // milliseconds
let wait = firstWait;
const connect = () => {
	const source = new EventSource("requests");
	source.addEventListener("open", () => {
		wait = firstWait;
		offline = false;
		ahead = -Infinity;
		steps.clear();
		draw();
	});
	source.addEventListener("error", () => {
		source.close();
		if (!offline) offlineSince = status && now();
		offline = true;
		draw();
		setTimeout(connect, wait);
		wait = Math.min(2 * wait, longestWait);
	});
	source.addEventListener("requests", event => {
		const {requests: added, first} = JSON.parse(event.data);
		added.reverse();
		requests = latestOfEachKind(first ? added : [...added, ...requests]);
		draw();
	});
	source.addEventListener("status", event => {
		status = JSON.parse(event.data);
		ahead = Math.max(ahead, new Date(status.time) - Date.now()); // a message takes some time
		for (const step of status.history.steps) steps.set(step.n, step);
		status.last = status.history.steps.at(-1).n;
		for (const n of steps.keys()) if (n <= status.last - status.history.kept) steps.delete(n);
		const counted = list => JSON.stringify(list.map(i => [i.waiting, i.dead]));
		if (status.inboxes.length && now() - summaryAt > summaryEvery * 1000 && (counted(status.inboxes) !== counted(summary) || summary.some(i => i.groups.length))) readSummary();
		draw();
	});
};
for (const head of document.querySelectorAll("th.at")) head.append(` ${zone(Date.now())}`);
connect();
draw();
