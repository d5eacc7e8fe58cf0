// Package redistest starts real Redis servers for tests.
package redistest

import (
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"encoding/pem"
	"errors"
	"fmt"
	"math/big"
	"net"
	"os"
	"os/exec"
	"runtime"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/redis/rueidis"

	"github.com/buzzbip/caddy-webhook/internal/caddytest"
)

// Server is a redis-server of a test's own, on loopback. It is stopped at the
// end of the test.
type Server struct {
	t        testing.TB
	port     int
	args     []string
	sentinel bool
	dir      string
	cmd      *exec.Cmd
	ended    chan struct{}
	options  rueidis.ClientOption // of the client that Do uses
	scheme   string
}

// binary is the server to test with: $REDIS_SERVER, such as valkey-server, or
// redis-server.
func binary(t testing.TB) string {
	t.Helper()
	if runtime.GOOS == "windows" {
		t.Skip("there is no Redis for Windows")
	}
	name := os.Getenv("REDIS_SERVER")
	if name == "" {
		name = "redis-server"
	}
	path, err := exec.LookPath(name)
	if err != nil {
		t.Fatalf("there is no %s here: install it, as make test does", name)
	}
	return path
}

// Start starts a server with arguments of redis-server, and without
// persistence unless they ask for it.
func Start(t testing.TB, args ...string) *Server {
	t.Helper()
	s := &Server{t: t, port: freePort(t), dir: t.TempDir(), scheme: "redis"}
	s.args = append([]string{"--port", strconv.Itoa(s.port)}, args...)
	s.run()
	return s
}

// freePort returns a port on loopback that nobody listens at, nor at the one
// 10000 above, which a node of a Cluster needs too.
func freePort(t testing.TB) int {
	t.Helper()
	for range 100 {
		port := caddytest.FreePort(t)
		bus, err := net.Listen("tcp", fmt.Sprintf("127.0.0.1:%d", port+10000))
		if err == nil {
			bus.Close()
			return port
		}
	}
	t.Fatal("no free port")
	return 0
}

// StartTLS starts a server that talks TLS only, with a certificate of an
// authority of its own, and lets nobody in but a user with a password.
func StartTLS(t testing.TB, user, password string) *Server {
	t.Helper()
	s := &Server{t: t, port: freePort(t), dir: t.TempDir(), scheme: "rediss"}
	authority, err := writeCertificates(s.dir)
	if err != nil {
		t.Fatal(err)
	}
	s.options = rueidis.ClientOption{TLSConfig: &tls.Config{RootCAs: authority}, Username: user, Password: password}
	s.args = []string{
		"--port", "0", "--tls-port", strconv.Itoa(s.port), "--tls-auth-clients", "no",
		"--tls-cert-file", s.dir + "/server.pem", "--tls-key-file", s.dir + "/server.key", "--tls-ca-cert-file", s.CA(),
		"--user", user, "on", ">" + password, "~buzzbip:*", "&buzzbip:*", "+@connection", "+@read", "+@write", "+@scripting", "+@pubsub", "--user", "default", "off",
	}
	s.run()
	return s
}

// CA is the file with the certificate of the authority, after StartTLS.
func (s *Server) CA() string { return s.dir + "/ca.pem" }

func writeCertificates(dir string) (*x509.CertPool, error) {
	caKey, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		return nil, err
	}
	ca := &x509.Certificate{
		SerialNumber: big.NewInt(1), NotAfter: time.Now().Add(time.Hour),
		IsCA: true, BasicConstraintsValid: true, KeyUsage: x509.KeyUsageCertSign,
	}
	caDER, err := x509.CreateCertificate(rand.Reader, ca, ca, caKey.Public(), caKey)
	if err != nil {
		return nil, err
	}
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		return nil, err
	}
	leaf := &x509.Certificate{SerialNumber: big.NewInt(2), NotAfter: ca.NotAfter, IPAddresses: []net.IP{net.IPv4(127, 0, 0, 1)}}
	der, err := x509.CreateCertificate(rand.Reader, leaf, ca, key.Public(), caKey)
	if err != nil {
		return nil, err
	}
	private, err := x509.MarshalPKCS8PrivateKey(key)
	if err != nil {
		return nil, err
	}
	caPEM := pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: caDER})
	authority := x509.NewCertPool()
	authority.AppendCertsFromPEM(caPEM)
	return authority, errors.Join(
		os.WriteFile(dir+"/ca.pem", caPEM, 0o600),
		os.WriteFile(dir+"/server.pem", pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: der}), 0o600),
		os.WriteFile(dir+"/server.key", pem.EncodeToMemory(&pem.Block{Type: "PRIVATE KEY", Bytes: private}), 0o600),
	)
}

// StartCluster starts a Cluster of three masters with a replica each, and
// returns the nodes when it works, the masters first.
func StartCluster(t testing.TB) []*Server {
	t.Helper()
	const masters = 3
	nodes := make([]*Server, 2*masters)
	for i := range nodes {
		nodes[i] = Start(t, "--cluster-enabled", "yes", "--cluster-node-timeout", "1000", "--cluster-config-file", "nodes.conf",
			"--repl-diskless-sync-delay", "0")
	}
	for i, node := range nodes[:masters] {
		node.Do("CLUSTER", "ADDSLOTSRANGE", strconv.Itoa(i*16384/masters), strconv.Itoa((i+1)*16384/masters-1))
		node.Do("CLUSTER", "SET-CONFIG-EPOCH", strconv.Itoa(i+1))
	}
	for _, node := range nodes[1:] {
		node.Do("CLUSTER", "MEET", "127.0.0.1", strconv.Itoa(nodes[0].port))
	}
	all := func(what string, done func(*Server) bool) {
		caddytest.WaitFor(t, what, func() bool {
			return !slices.ContainsFunc(nodes, func(node *Server) bool { return !done(node) })
		})
	}
	all("the nodes to meet", func(s *Server) bool { return strings.Count(s.Do("CLUSTER", "NODES"), " connected") == len(nodes) })
	for i, replica := range nodes[masters:] {
		replica.Do("CLUSTER", "REPLICATE", nodes[i].Do("CLUSTER", "MYID"))
	}
	all("the cluster to work", func(s *Server) bool { return strings.Contains(s.Do("CLUSTER", "INFO"), "cluster_state:ok") })
	for _, replica := range nodes[masters:] {
		caddytest.WaitFor(t, "a replica to follow", func() bool { return strings.Contains(replica.Do("INFO", "replication"), "master_link_status:up") })
	}
	all("all to know the replicas", func(s *Server) bool { return strings.Count(s.Do("CLUSTER", "NODES"), "slave") == masters })
	return nodes
}

// MoveSlots moves the slots below end of a Cluster from one master to another.
func MoveSlots(cluster []*Server, end int, from, to *Server) {
	source, target := from.Do("CLUSTER", "MYID"), to.Do("CLUSTER", "MYID")
	for slot := range end {
		number := strconv.Itoa(slot)
		to.Do("CLUSTER", "SETSLOT", number, "IMPORTING", source)
		from.Do("CLUSTER", "SETSLOT", number, "MIGRATING", target)
		for {
			keys := from.Do("CLUSTER", "GETKEYSINSLOT", number, "10")
			if keys == "" {
				break
			}
			from.Do(append([]string{"MIGRATE", "127.0.0.1", strconv.Itoa(to.port), "", "0", "10000", "KEYS"}, strings.Split(keys, "\n")...)...)
		}
		to.Do("CLUSTER", "SETSLOT", number, "NODE", target)
		from.Do("CLUSTER", "SETSLOT", number, "NODE", target)
	}
	// A node that takes a slot before it knows the epoch of the one that had it may
	// lose it again to a message that is late.
	var views []string
	from.t.Cleanup(func() {
		if from.t.Failed() {
			from.t.Logf("after a move, the nodes knew of the slots:\n%s", strings.Join(views, "\n\n"))
		}
	})
	caddytest.WaitFor(from.t, "the nodes to agree on who has which slots", func() bool {
		views = views[:0]
		for _, node := range cluster {
			views = append(views, node.slots())
		}
		return len(slices.Compact(slices.Clone(views))) == 1
	})
}

// slots returns what a node knows of the masters of its Cluster: their IDs,
// epochs and slots.
func (s *Server) slots() string {
	var masters []string
	for node := range strings.Lines(s.Do("CLUSTER", "NODES")) {
		// redis.io/docs/latest/commands/cluster-nodes
		if fields := strings.Fields(node); strings.Contains(fields[2], "master") {
			masters = append(masters, fmt.Sprint(fields[0], fields[6], fields[8:]))
		}
	}
	slices.Sort(masters)
	return strings.Join(masters, "\n")
}

// MasterSet is the name that the Sentinels of StartSentinels know the master
// by.
const MasterSet = "buzzbip"

// StartSentinels starts a master, a replica and three Sentinels that watch
// them.
func StartSentinels(t testing.TB) (master *Server, sentinels []*Server) {
	t.Helper()
	master = Start(t, "--repl-diskless-sync-delay", "0")
	replica := Start(t, "--replicaof", "127.0.0.1 "+strconv.Itoa(master.port), "--repl-diskless-sync-delay", "0")
	caddytest.WaitFor(t, "the replica to follow", func() bool { return strings.Contains(replica.Do("INFO", "replication"), "master_link_status:up") })
	for range 3 {
		s := &Server{t: t, port: freePort(t), dir: t.TempDir(), scheme: "redis"}
		config := fmt.Sprintf("port %d\nsentinel monitor %s 127.0.0.1 %d 2\nsentinel down-after-milliseconds %[2]s 500\nsentinel failover-timeout %[2]s 2000\n",
			s.port, MasterSet, master.port)
		if err := os.WriteFile(s.dir+"/sentinel.conf", []byte(config), 0o600); err != nil {
			t.Fatal(err)
		}
		s.sentinel = true
		s.run()
		sentinels = append(sentinels, s)
	}
	for _, s := range sentinels {
		caddytest.WaitFor(t, "the Sentinels to know all", func() bool {
			return strings.Count(s.Do("SENTINEL", "SENTINELS", MasterSet), "runid") == len(sentinels)-1 &&
				strings.Count(s.Do("SENTINEL", "REPLICAS", MasterSet), "runid") == 1
		})
	}
	return master, sentinels
}

// run starts the process and returns when it answers.
func (s *Server) run() {
	s.t.Helper()
	program := binary(s.t)
	log, err := os.OpenFile(s.dir+"/log", os.O_CREATE|os.O_APPEND|os.O_RDWR, 0o600)
	if err != nil {
		s.t.Fatal(err)
	}
	args := append([]string{"--bind", "127.0.0.1", "--dir", s.dir, "--save", "", "--appendonly", "no"}, s.args...)
	if s.sentinel {
		args = []string{s.dir + "/sentinel.conf", "--sentinel"}
	}
	s.cmd = exec.Command(program, args...)
	s.cmd.Stdout, s.cmd.Stderr = log, log
	if err := s.cmd.Start(); err != nil {
		s.t.Fatal(err)
	}
	ended := make(chan struct{})
	s.ended = ended
	cmd := s.cmd
	go func() {
		_ = cmd.Wait()
		log.Close()
		close(ended)
	}()
	s.t.Cleanup(func() {
		_ = cmd.Process.Kill()
		<-ended
		if s.t.Failed() {
			text, _ := os.ReadFile(s.dir + "/log")
			s.t.Logf("log of the server at %s:\n%s", s.Addr(), text)
		}
	})
	for end := time.Now().Add(caddytest.Patience); ; time.Sleep(10 * time.Millisecond) {
		if _, err = s.try("PING"); err == nil || strings.Contains(err.Error(), "NOAUTH") {
			return
		}
		select {
		case <-ended:
			s.t.Fatal("the server ended")
		default:
		}
		if time.Now().After(end) {
			s.t.Fatalf("the server does not answer: %v", err)
		}
	}
}

// Addr is the host and the port.
func (s *Server) Addr() string { return net.JoinHostPort("127.0.0.1", strconv.Itoa(s.port)) }

// URL is what a client connects to.
func (s *Server) URL() string { return s.scheme + "://" + s.Addr() }

// Kill ends the process with SIGKILL.
func (s *Server) Kill() {
	_ = s.cmd.Process.Kill()
	<-s.ended
}

// Restart starts the server again, at the same place, after Kill.
func (s *Server) Restart() {
	s.t.Helper()
	<-s.ended
	s.run()
}

// Pause stops the process with SIGSTOP: it takes connections, and answers
// nothing.
func (s *Server) Pause() {
	s.t.Helper()
	if err := pause(s.cmd.Process); err != nil {
		s.t.Fatal(err)
	}
}

// Resume lets a paused process go on.
func (s *Server) Resume() {
	s.t.Helper()
	if err := resume(s.cmd.Process); err != nil {
		s.t.Fatal(err)
	}
}

// Do runs a command and returns its answer as text, arrays one element a line.
func (s *Server) Do(args ...string) string {
	s.t.Helper()
	text, err := s.try(args...)
	if err != nil {
		s.t.Fatalf("%s: %v", args, err)
	}
	return text
}

func (s *Server) try(args ...string) (string, error) {
	options := s.options
	options.InitAddress = []string{s.Addr()}
	options.ForceSingleClient, options.DisableCache, options.DisableRetry = true, true, true
	options.AlwaysRESP2 = true // RESP3 puts "txt:" before some texts
	client, err := rueidis.NewClient(options)
	if err != nil {
		return "", err
	}
	defer client.Close()
	ctx, cancel := context.WithTimeout(context.Background(), caddytest.Patience)
	defer cancel()
	answer, err := client.Do(ctx, client.B().Arbitrary(args...).Build()).ToAny()
	if errors.Is(err, rueidis.Nil) {
		return "", nil
	}
	if err != nil {
		return "", err
	}
	var text strings.Builder
	write(&text, answer)
	return strings.TrimSuffix(text.String(), "\n"), nil
}

func write(text *strings.Builder, answer any) {
	switch answer := answer.(type) {
	case []any:
		for _, element := range answer {
			write(text, element)
		}
	default:
		fmt.Fprintln(text, answer)
	}
}
