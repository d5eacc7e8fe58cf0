package inbox

// calm is what first attempts must know to do without a lock. It is not changed.
type calm struct {
	epoch  int64           // the gate of no target that is calm was closed in a later one
	open   bool            // redelivery is neither paused nor stopped
	except map[string]bool // the targets whose gates are not calm
}

func (c *calm) has(target string) bool { return c.open && !c.except[target] }

// checkCalm sets calm. The caller locks.
func (d *Dispatcher) checkCalm() {
	c := &calm{epoch: d.epoch, open: !d.paused && !d.stopped, except: map[string]bool{}}
	for name, t := range d.targets {
		if !t.gate.calm() {
			c.except[name] = true
		}
	}
	d.calm.Store(c)
}

// learn takes the outcome of an attempt into account. It reports whether the next
// redelivery may pass at another time than before. The caller locks.
func (d *Dispatcher) learn(p *pass, o Outcome, policy Policy) (changed bool) {
	if p.gate == nil {
		return false // an attempt that began with an earlier configuration
	}
	d.change(p.gate, func() { changed = p.learn(o, policy.Concurrency, policy.backoff(d.random)) })
	return changed
}

// leave makes room for another redelivery. Further calls do nothing. The caller locks.
func (d *Dispatcher) leave(p *pass) {
	if p.redelivery {
		d.change(p.gate, p.leave)
	}
}

// change calls do, which may change whether g is calm. The caller locks.
func (d *Dispatcher) change(g *gate, do func()) {
	before := g.calm()
	do()
	if g.calm() != before {
		d.checkCalm()
	}
}
