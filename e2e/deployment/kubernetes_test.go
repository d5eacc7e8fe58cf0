package deployment

import (
	"context"
	"fmt"
	"maps"
	"net"
	"net/http"
	"os"
	"os/exec"
	"path"
	"path/filepath"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	appsv1 "k8s.io/api/apps/v1"
	corev1 "k8s.io/api/core/v1"
	networkingv1 "k8s.io/api/networking/v1"
	policyv1 "k8s.io/api/policy/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/labels"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/runtime/serializer"
	"k8s.io/apimachinery/pkg/util/intstr"
	"k8s.io/apimachinery/pkg/util/validation/field"
	"k8s.io/kubernetes/pkg/api/legacyscheme"
	"k8s.io/kubernetes/pkg/apis/apps"
	_ "k8s.io/kubernetes/pkg/apis/apps/install"
	appsvalidation "k8s.io/kubernetes/pkg/apis/apps/validation"
	"k8s.io/kubernetes/pkg/apis/core"
	_ "k8s.io/kubernetes/pkg/apis/core/install"
	corevalidation "k8s.io/kubernetes/pkg/apis/core/validation"
	"k8s.io/kubernetes/pkg/apis/networking"
	_ "k8s.io/kubernetes/pkg/apis/networking/install"
	networkingvalidation "k8s.io/kubernetes/pkg/apis/networking/validation"
	"k8s.io/kubernetes/pkg/apis/policy"
	_ "k8s.io/kubernetes/pkg/apis/policy/install"
	policyvalidation "k8s.io/kubernetes/pkg/apis/policy/validation"
	podsecurityapi "k8s.io/pod-security-admission/api"
	podsecurity "k8s.io/pod-security-admission/policy"
	"sigs.k8s.io/kustomize/api/krusty"
	"sigs.k8s.io/kustomize/kyaml/filesys"

	"github.com/buzzbip/caddy-webhook/internal/caddytest"
)

// cluster is what "kubectl apply -k" would create.
type cluster struct {
	namespaces []*corev1.Namespace
	caddy      *appsv1.StatefulSet
	redis      *appsv1.StatefulSet
	services   map[string]*corev1.Service
	secrets    map[string]*corev1.Secret
	configMaps map[string]*corev1.ConfigMap
	ingresses  []*networkingv1.Ingress
	policies   []*networkingv1.NetworkPolicy
	budgets    []*policyv1.PodDisruptionBudget
}

// kubernetesDir is a copy of the example, as it is before the first step.
func kubernetesDir(t *testing.T) string {
	t.Helper()
	dir := filepath.Join(t.TempDir(), "kubernetes")
	if err := os.CopyFS(dir, os.DirFS(filepath.Join(root, "examples", "kubernetes"))); err != nil {
		t.Fatal(err)
	}
	if err := os.RemoveAll(filepath.Join(dir, "secrets")); err != nil { // somebody's own
		t.Fatal(err)
	}
	return dir
}

// makeSecrets runs the script of the example.
func makeSecrets(dir, secret string) (string, error) {
	script := exec.Command(filepath.Join(dir, "make-secrets.sh"))
	script.Stdin = strings.NewReader(secret)
	out, err := script.CombinedOutput()
	return string(out), err
}

func TestMakeSecretsOverwritesNone(t *testing.T) {
	dir := kubernetesDir(t)
	files := func() map[string]string {
		t.Helper()
		found := make(map[string]string)
		names, err := filepath.Glob(filepath.Join(dir, "secrets", "*"))
		if err != nil {
			t.Fatal(err)
		}
		for _, name := range names {
			text, err := os.ReadFile(name)
			if err != nil {
				t.Fatal(err)
			}
			found[filepath.Base(name)] = string(text)
		}
		return found
	}
	for _, blank := range []string{"", "\n", " \t\n"} {
		if out, err := makeSecrets(dir, blank); err == nil || len(files()) > 0 {
			t.Errorf("of %q it makes %q (%v, %s)", blank, files(), err, out)
		}
	}
	if out, err := makeSecrets(dir, caddytest.Secret+"\n"); err != nil {
		t.Fatalf("make-secrets.sh: %v\n%s", err, out)
	}
	made := files()
	if len(made) != 4 {
		t.Errorf("it makes %q", made)
	}
	for _, again := range []string{"the-secret-after-the-rotation-xx\n", ""} {
		out, err := makeSecrets(dir, again)
		if err == nil || !strings.Contains(out, "docs/DEPLOYMENT.md") {
			t.Errorf("run again: %v, %s", err, out)
		}
		if now := files(); !maps.Equal(now, made) {
			t.Errorf("run again with %q it leaves %q of %q", again, now, made)
		}
	}
}

// kubernetes makes the secrets with the script of the example, builds the
// kustomization with what kubectl builds it with, and has each object decoded,
// completed and validated by the code of the API server.
func kubernetes(t *testing.T) *cluster {
	t.Helper()
	dir := kubernetesDir(t)
	if out, err := makeSecrets(dir, caddytest.Secret+"\n"); err != nil {
		t.Fatalf("make-secrets.sh: %v\n%s", err, out)
	}
	built, err := krusty.MakeKustomizer(krusty.MakeDefaultOptions()).Run(filesys.MakeFsOnDisk(), dir)
	if err != nil {
		t.Fatal(err)
	}
	c := &cluster{services: make(map[string]*corev1.Service), secrets: make(map[string]*corev1.Secret), configMaps: make(map[string]*corev1.ConfigMap)}
	decoder := serializer.NewCodecFactory(legacyscheme.Scheme, serializer.EnableStrict).UniversalDeserializer()
	for _, resource := range built.Resources() {
		id := resource.CurId().String()
		text, err := resource.AsYAML()
		if err != nil {
			t.Fatal(err)
		}
		object, _, err := decoder.Decode(text, nil, nil)
		if err != nil {
			t.Errorf("%s: %v", id, err)
			continue
		}
		legacyscheme.Scheme.Default(object)
		internal, err := legacyscheme.Scheme.UnsafeConvertToVersion(object.DeepCopyObject(), runtime.InternalGroupVersioner)
		if err != nil {
			t.Fatalf("%s: %v", id, err)
		}
		for _, fault := range validate(internal) {
			t.Errorf("%s: %v", id, fault)
		}
		switch object := object.(type) {
		case *corev1.Namespace:
			c.namespaces = append(c.namespaces, object)
			continue
		case *appsv1.StatefulSet:
			switch object.Name {
			case "caddy":
				c.caddy = object
			case "redis":
				c.redis = object
			}
		case *corev1.Service:
			c.services[object.Name] = object
		case *corev1.Secret:
			c.secrets[object.Name] = object
		case *corev1.ConfigMap:
			c.configMaps[object.Name] = object
		case *networkingv1.Ingress:
			c.ingresses = append(c.ingresses, object)
		case *networkingv1.NetworkPolicy:
			c.policies = append(c.policies, object)
		case *policyv1.PodDisruptionBudget:
			c.budgets = append(c.budgets, object)
		default:
			t.Errorf("%s is not checked", id)
		}
		if ns := resource.GetNamespace(); ns != "buzzbip" {
			t.Errorf("%s is in the namespace %q", id, ns)
		}
	}
	if c.caddy == nil || c.redis == nil {
		t.Fatal("there is no StatefulSet caddy or redis")
	}
	return c
}

// validate is what the API server says of an object that is created.
func validate(object runtime.Object) field.ErrorList {
	switch object := object.(type) {
	case *core.Namespace:
		return corevalidation.ValidateNamespace(object)
	case *core.Service:
		object.Spec.ClusterIPs = nil // is allocated before
		if object.Spec.ClusterIP != "" {
			object.Spec.ClusterIPs = []string{object.Spec.ClusterIP}
		}
		return corevalidation.ValidateServiceCreate(object)
	case *core.Secret:
		return corevalidation.ValidateSecret(object)
	case *core.ConfigMap:
		return corevalidation.ValidateConfigMap(object)
	case *apps.StatefulSet:
		return appsvalidation.ValidateStatefulSet(object, corevalidation.PodValidationOptions{})
	case *networking.Ingress:
		return networkingvalidation.ValidateIngressCreate(object)
	case *networking.NetworkPolicy:
		return networkingvalidation.ValidateNetworkPolicy(object, networkingvalidation.NetworkPolicyValidationOptions{})
	case *policy.PodDisruptionBudget:
		return policyvalidation.ValidatePodDisruptionBudget(object, policyvalidation.PodDisruptionBudgetValidationOptions{})
	}
	return field.ErrorList{field.InternalError(nil, fmt.Errorf("%T is not validated", object))}
}

func (c *cluster) templates() []*corev1.PodTemplateSpec {
	return []*corev1.PodTemplateSpec{&c.caddy.Spec.Template, &c.redis.Spec.Template}
}

// selected returns the one template that has the labels.
func (c *cluster) selected(t *testing.T, by string, selector *metav1.LabelSelector) *corev1.PodTemplateSpec {
	t.Helper()
	s, err := metav1.LabelSelectorAsSelector(selector)
	if err != nil {
		t.Fatalf("%s: %v", by, err)
	}
	var found []*corev1.PodTemplateSpec
	for _, template := range c.templates() {
		if s.Matches(labels.Set(template.Labels)) {
			found = append(found, template)
		}
	}
	if len(found) != 1 {
		t.Fatalf("%s selects %d templates by %s, want 1", by, len(found), s)
	}
	return found[0]
}

// port returns the port of a container that a name or a number stands for.
func port(t *testing.T, by string, template *corev1.PodTemplateSpec, target intstr.IntOrString) int32 {
	t.Helper()
	for _, container := range template.Spec.Containers {
		for _, p := range container.Ports {
			if target.Type == intstr.String && p.Name == target.StrVal || target.Type == intstr.Int && p.ContainerPort == target.IntVal {
				return p.ContainerPort
			}
		}
	}
	t.Errorf("%s: no container has the port %s", by, target.String())
	return 0
}

// mounted returns what the first container of a template would find, by path.
func (c *cluster) mounted(t *testing.T, template *corev1.PodTemplateSpec) map[string][]byte {
	t.Helper()
	files := make(map[string][]byte)
	for _, mount := range template.Spec.Containers[0].VolumeMounts {
		i := slices.IndexFunc(template.Spec.Volumes, func(v corev1.Volume) bool { return v.Name == mount.Name })
		if i < 0 {
			continue // a claim; the API server's code has looked for it
		}
		volume := template.Spec.Volumes[i]
		data := make(map[string][]byte)
		var items []corev1.KeyToPath
		switch {
		case volume.Secret != nil:
			secret, ok := c.secrets[volume.Secret.SecretName]
			if !ok {
				t.Errorf("there is no Secret %s", volume.Secret.SecretName)
				continue
			}
			data, items = secret.Data, volume.Secret.Items
			if mount.SubPath != "" {
				t.Errorf("%s is mounted with subPath, so it does not change with the Secret", mount.MountPath)
			}
		case volume.ConfigMap != nil:
			config, ok := c.configMaps[volume.ConfigMap.Name]
			if !ok {
				t.Errorf("there is no ConfigMap %s", volume.ConfigMap.Name)
				continue
			}
			for key, value := range config.Data {
				data[key] = []byte(value)
			}
			items = volume.ConfigMap.Items
		}
		if items == nil {
			for key := range data {
				items = append(items, corev1.KeyToPath{Key: key, Path: key})
			}
		}
		for _, item := range items {
			value, ok := data[item.Key]
			if !ok {
				t.Errorf("%s has no key %s", volume.Name, item.Key)
			}
			files[path.Join(mount.MountPath, item.Path)] = value
		}
	}
	return files
}

func TestKubernetes(t *testing.T) {
	c := kubernetes(t)
	caddy, redis := &c.caddy.Spec.Template, &c.redis.Spec.Template

	if len(c.namespaces) != 1 || c.namespaces[0].Name != c.caddy.Namespace {
		t.Fatal("the namespace is not that of Caddy")
	}
	level, ok := c.namespaces[0].Labels[podsecurityapi.EnforceLevelLabel]
	if !ok {
		t.Errorf("the namespace does not have %s", podsecurityapi.EnforceLevelLabel)
	}
	evaluator, err := podsecurity.NewEvaluator(podsecurity.DefaultChecks(), nil)
	if err != nil {
		t.Fatal(err)
	}
	for _, template := range c.templates() {
		enforced := podsecurityapi.LevelVersion{Level: podsecurityapi.Level(level), Version: podsecurityapi.LatestVersion()}
		if result := podsecurity.AggregateCheckResults(evaluator.EvaluatePod(enforced, &template.ObjectMeta, &template.Spec)); !result.Allowed {
			t.Errorf("the namespace rejects the pods: %s", result.ForbiddenDetail())
		}
		for _, container := range template.Spec.Containers {
			for _, probe := range []*corev1.Probe{container.ReadinessProbe, container.LivenessProbe} {
				switch {
				case probe == nil:
					t.Errorf("%s has not both probes", container.Name)
				case probe.HTTPGet != nil:
					port(t, "a probe of "+container.Name, template, probe.HTTPGet.Port)
				case probe.TCPSocket != nil:
					port(t, "a probe of "+container.Name, template, probe.TCPSocket.Port)
				}
			}
			if s := container.SecurityContext; s.ReadOnlyRootFilesystem == nil || !*s.ReadOnlyRootFilesystem {
				t.Errorf("%s can write to its root", container.Name)
			}
		}
	}
	if *c.caddy.Spec.Replicas != 2 {
		t.Errorf("%d replicas", *c.caddy.Spec.Replicas)
	}
	if user := imageUser(t); *caddy.Spec.SecurityContext.RunAsUser != user || *caddy.Spec.SecurityContext.FSGroup != user {
		t.Errorf("the pod's user or group is not that of the image, %d", user)
	}

	for name, service := range c.services {
		template := c.selected(t, "the Service "+name, &metav1.LabelSelector{MatchLabels: service.Spec.Selector})
		for _, p := range service.Spec.Ports {
			target := port(t, "the Service "+name, template, p.TargetPort)
			if service.Spec.ClusterIP == corev1.ClusterIPNone && target != p.Port {
				t.Errorf("the Service %s has the port %d, and as it is headless it reaches %d", name, p.Port, target)
			}
		}
	}
	for _, set := range []*appsv1.StatefulSet{c.caddy, c.redis} {
		if _, ok := c.services[set.Spec.ServiceName]; !ok {
			t.Errorf("the Service %s of %s is not there", set.Spec.ServiceName, set.Name)
		}
	}
	for _, budget := range c.budgets {
		if c.selected(t, "the PodDisruptionBudget", budget.Spec.Selector) != caddy {
			t.Error("the PodDisruptionBudget is not Caddy's")
		}
		if budget.Spec.MinAvailable == nil || budget.Spec.MinAvailable.IntVal >= *c.caddy.Spec.Replicas {
			t.Error("the PodDisruptionBudget lets no pod be evicted, ever")
		}
	}
	for _, p := range c.policies {
		if c.selected(t, "the NetworkPolicy", &p.Spec.PodSelector) != redis {
			t.Error("the NetworkPolicy is not that of Redis")
		}
		for _, rule := range p.Spec.Ingress {
			if len(rule.From) != 1 || c.selected(t, "its rule", rule.From[0].PodSelector) != caddy {
				t.Error("the NetworkPolicy lets others than Caddy in")
			}
			for _, allowed := range rule.Ports {
				port(t, "the NetworkPolicy", redis, *allowed.Port)
			}
		}
	}
	for _, ingress := range c.ingresses {
		for _, rule := range ingress.Spec.Rules {
			if !slices.ContainsFunc(ingress.Spec.TLS, func(tls networkingv1.IngressTLS) bool { return slices.Contains(tls.Hosts, rule.Host) }) {
				t.Errorf("%s has no TLS, which BuzzBip insists on", rule.Host)
			}
			for _, p := range rule.HTTP.Paths {
				service, ok := c.services[p.Backend.Service.Name]
				if !ok || !slices.ContainsFunc(service.Spec.Ports, func(s corev1.ServicePort) bool { return s.Name == p.Backend.Service.Port.Name }) {
					t.Errorf("the Ingress leads to %s, which is not there", p.Backend.Service)
				}
				caddyfile := example(t, "kubernetes", "Caddyfile")
				if !strings.Contains(caddyfile, "\thandle "+p.Path+" {\n") {
					t.Errorf("the Caddyfile has nothing at the path of the Ingress, %s", p.Path)
				}
			}
		}
	}
	if len(c.budgets) != 1 || len(c.policies) != 1 || len(c.ingresses) != 1 {
		t.Error("there is not one PodDisruptionBudget, one NetworkPolicy and one Ingress")
	}

	// what the Caddyfile needs is there
	files := c.mounted(t, caddy)
	caddyfile := string(files["/etc/caddy/Caddyfile"])
	if caddyfile != example(t, "kubernetes", "Caddyfile") {
		t.Fatalf("the Caddyfile in the pod is %q", caddyfile)
	}
	needed := regexp.MustCompile(`/run/secrets/[\w/.-]+`).FindAllString(caddyfile, -1)
	if len(needed) != 3 {
		t.Errorf("the Caddyfile has the files %q", needed)
	}
	for _, name := range needed {
		if len(files[name]) == 0 {
			t.Errorf("%s is not mounted, or is empty", name)
		}
	}
	writable := make(map[string]bool)
	for _, mount := range caddy.Spec.Containers[0].VolumeMounts {
		writable[mount.MountPath] = !mount.ReadOnly
	}
	if !writable["/data"] || !writable["/config"] {
		t.Error("Caddy cannot write to /data or /config")
	}
	if claims := c.caddy.Spec.VolumeClaimTemplates; len(claims) != 1 || !slices.ContainsFunc(caddy.Spec.Containers[0].VolumeMounts, func(m corev1.VolumeMount) bool {
		return m.MountPath == "/data" && m.Name == claims[0].Name
	}) {
		t.Error("the inbox, below /data, is lost with the pod")
	}
	s := adapted(t, caddyfile)
	for _, listen := range s.Listen {
		port(t, "the Caddyfile", caddy, intstr.FromInt(portOf(t, listen)))
	}
	if grace := time.Duration(*caddy.Spec.TerminationGracePeriodSeconds) * time.Second; grace <= s.ShortestStop {
		t.Errorf("terminationGracePeriodSeconds is %v, which cuts deliveries off: Caddy takes up to %v", grace, s.ShortestStop)
	}
	probe := caddy.Spec.Containers[0].ReadinessProbe
	if notReady := time.Duration(probe.PeriodSeconds*probe.FailureThreshold) * time.Second; notReady >= s.ShutdownDelay {
		t.Errorf("a pod is found not to be ready after %v, which is too late for shutdown_delay, %v", notReady, s.ShutdownDelay)
	}
	_, host, _ := strings.Cut(strings.TrimSpace(string(files["/run/secrets/redis/url"])), "@")
	name, number, err := net.SplitHostPort(host)
	if service, ok := c.services[name]; err != nil || !ok || strconv.Itoa(int(service.Spec.Ports[0].Port)) != number {
		t.Errorf("the address of Redis, %s, is not that of a Service", host)
	}
	for _, key := range []string{"current", "previous"} {
		if got := string(c.secrets["buzzbip"].Data[key]); got != caddytest.Secret+"\n" {
			t.Errorf("the Secret has %q as %s", got, key)
		}
	}
}

// kubelet writes files as Kubernetes does: in a new directory, which takes the
// place of the last with one rename of a symbolic link.
func kubelet(t *testing.T, dir string, files map[string]string) {
	t.Helper()
	if err := os.MkdirAll(dir, 0o700); err != nil {
		t.Fatal(err)
	}
	version, err := os.MkdirTemp(dir, "..version")
	if err != nil {
		t.Fatal(err)
	}
	last, _ := os.Readlink(filepath.Join(dir, "..data"))
	for name, text := range files {
		if err := os.WriteFile(filepath.Join(version, name), []byte(text), 0o400); err != nil {
			t.Fatal(err)
		}
		if err := os.Symlink(filepath.Join("..data", name), filepath.Join(dir, name)); err != nil && !os.IsExist(err) {
			t.Fatal(err)
		}
	}
	if err := os.Symlink(filepath.Base(version), filepath.Join(dir, "..data_tmp")); err != nil {
		t.Fatal(err)
	}
	if err := os.Rename(filepath.Join(dir, "..data_tmp"), filepath.Join(dir, "..data")); err != nil {
		t.Fatal(err)
	}
	if last != "" {
		if err := os.RemoveAll(filepath.Join(dir, last)); err != nil {
			t.Fatal(err)
		}
	}
}

// pod is a replica as a process.
type pod struct {
	*caddytest.Caddy
	url, ready, live, metrics string
}

func TestKubernetesRuns(t *testing.T) {
	c := kubernetes(t)
	run := t.TempDir() // in the place of /run
	files := make(map[string]map[string]string)
	for _, template := range c.templates() {
		for name, text := range c.mounted(t, template) {
			if name, ok := strings.CutPrefix(name, "/run"); ok {
				dir := filepath.Join(run, path.Dir(name))
				if files[dir] == nil {
					files[dir] = make(map[string]string)
				}
				files[dir][path.Base(name)] = string(text)
			}
		}
	}
	container := c.redis.Spec.Template.Spec.Containers[0]
	if container.Args[0] != "redis-server" {
		t.Fatalf("redis runs %q", container.Args)
	}
	keepsIDs(t, container.Args)
	args := strings.Split(caddytest.Replace(t, strings.Join(container.Args[1:], "\n"), "/run/secrets", run+"/secrets"), "\n")
	redisDir := filepath.Join(run, "secrets", "redis")
	kubelet(t, redisDir, files[redisDir])
	redis := startRedis(t, container.ReadinessProbe.Exec.Command, args...)
	if out, err := exec.Command("redis-cli", "-p", redis[strings.LastIndex(redis, ":")+1:], "KEYS", "*").CombinedOutput(); !strings.Contains(string(out), "NOPERM") {
		t.Errorf("without a password Redis answers %q (%v)", out, err)
	}
	files[redisDir]["url"] = caddytest.Replace(t, files[redisDir]["url"], "redis:6379", redis)
	for dir, content := range files {
		kubelet(t, dir, content)
	}

	arrived, release := make(chan struct{}, 1), make(chan struct{})
	var away atomic.Bool
	backend := caddytest.NewBackend(t, func(w http.ResponseWriter, r *http.Request) {
		switch {
		case away.Load():
			w.WriteHeader(http.StatusServiceUnavailable)
		case r.URL.RawQuery == "slow":
			arrived <- struct{}{}
			<-release
		}
	})
	end := sync.OnceFunc(func() { close(release) })
	t.Cleanup(end) // the backend ends when nothing is under way
	caddyfile := caddytest.Replace(t, example(t, "kubernetes", "Caddyfile"),
		"/run/secrets", run+"/secrets", "backend:9000", backend.Address(), "shutdown_delay 10s", "shutdown_delay 3s")
	var pods []pod
	for range 2 {
		site, health := caddytest.FreeAddress(t), caddytest.FreeAddress(t)
		main := c.caddy.Spec.Template.Spec.Containers[0]
		pods = append(pods, pod{
			Caddy:   start(t, "", caddytest.Replace(t, caddyfile, "http://:8080", "http://"+site, "http://:8081", "http://"+health)),
			url:     "http://" + site + "/webhooks/buzzbip",
			ready:   "http://" + health + main.ReadinessProbe.HTTPGet.Path,
			live:    "http://" + health + main.LivenessProbe.HTTPGet.Path,
			metrics: "http://" + health + "/metrics",
		})
	}
	for _, p := range pods {
		for _, url := range []string{p.ready, p.live, p.metrics} {
			if status := get(url); status != http.StatusOK {
				t.Errorf("%s is answered %d", url, status)
			}
		}
		if p.Metric(`store_up{store="redis"}`) != 1 {
			t.Error("Redis does not work")
		}
	}
	check(t, pods[0].url, filepath.Join(run, "secrets", "buzzbip", "current"))
	logsAccess(t, pods[0].Caddy)

	expect := func(got caddytest.Answer, status int, result string) {
		t.Helper()
		if got.Status != status || got.Result != result {
			t.Errorf("answered %+v, want %d %q", got, status, result)
		}
	}
	body := caddytest.NewEvent()
	expect(caddytest.Post(t.Context(), pods[0].url, body), http.StatusOK, "")
	expect(caddytest.Post(t.Context(), pods[1].url, body), http.StatusOK, "duplicate")

	// each pod has an inbox, and delivers what it has stored
	away.Store(true)
	stored := caddytest.NewEvent()
	expect(caddytest.Post(t.Context(), pods[0].url, stored), http.StatusOK, "stored")
	expect(caddytest.Post(t.Context(), pods[1].url, stored), http.StatusOK, "duplicate")
	away.Store(false)
	caddytest.WaitFor(t, "the inbox to be empty", func() bool { return pods[0].Metric(`inbox_events{state="waiting"}`) == 0 })
	if backend.Count(stored) < 2 {
		t.Error("the backend did not get the event that was stored")
	}

	// the first step of a rotation: the pods stay
	const newSecret = "the-secret-after-the-rotation-xx"
	kubelet(t, filepath.Join(run, "secrets", "buzzbip"), map[string]string{"current": newSecret + "\n", "previous": caddytest.Secret + "\n"})
	for _, p := range pods {
		caddytest.WaitFor(t, "the new secret to be active", func() bool { return strings.Contains(p.Log.String(), "the secret has changed") })
		expect(caddytest.Post(t.Context(), p.url, caddytest.NewEvent()), http.StatusOK, "") // under the old
		expect(caddytest.PostWith(t.Context(), p.url, newSecret, body), http.StatusOK, "duplicate")
	}

	// a pod is deleted while it delivers
	leaving, staying := pods[0], pods[1]
	slow := caddytest.NewEvent()
	answered := make(chan caddytest.Answer, 1)
	go func() { answered <- caddytest.Post(context.Background(), leaving.url+"?slow", slow) }()
	<-arrived
	if err := leaving.Cmd.Process.Signal(syscall.SIGTERM); err != nil {
		t.Fatal(err)
	}
	caddytest.WaitFor(t, "the pod not to be ready", func() bool { return get(leaving.ready) == http.StatusServiceUnavailable })
	if status := get(leaving.live); status != http.StatusOK {
		t.Errorf("while it is going /livez is answered %d", status)
	}
	// delivered, or stored if Caddy has stopped redelivery already
	if got := caddytest.Post(t.Context(), leaving.url, caddytest.NewEvent()); got.Status != http.StatusOK {
		t.Errorf("answered %+v, want 200", got)
	}
	caddytest.WaitFor(t, "its end to begin", func() bool { return get(leaving.live) == 0 })
	end()
	if got := <-answered; got.Status != http.StatusOK { // stored, if it took longer than answer_within
		t.Errorf("answered %+v, want 200", got)
	}
	select {
	case <-leaving.Ended:
	case <-time.After(caddytest.Patience):
		t.Fatal("the pod does not end")
	}
	if code := leaving.Cmd.ProcessState.ExitCode(); code != 0 {
		t.Errorf("the pod ended with %d", code)
	}
	expect(caddytest.Post(t.Context(), staying.url, slow), http.StatusOK, "duplicate")
}
