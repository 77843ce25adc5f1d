// Replaces two sidecars of Kubernetes, node-driver-registrar and
// livenessprobe, whose modules are not available where these tests are built.
// It understands the flags that the chart passes and does what the chart relies
// on, no more:
//
//	sidecars registrar      registers the driver with kubelet's plugin watcher
//	sidecars livenessprobe  answers /healthz with what the driver's Probe says
package main

import (
	"context"
	"flag"
	"fmt"
	"log"
	"net"
	"net/http"
	"os"
	"os/signal"
	"path/filepath"
	"syscall"
	"time"

	"github.com/container-storage-interface/spec/lib/go/csi"
	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials/insecure"
	registration "k8s.io/kubelet/pkg/apis/pluginregistration/v1"
)

func main() {
	if len(os.Args) < 2 {
		log.Fatal("sidecars: which one? registrar or livenessprobe")
	}
	flags := flag.NewFlagSet(os.Args[1], flag.ExitOnError)
	address := flags.String("csi-address", "/run/csi/socket", "the driver's socket")
	health := flags.String("http-endpoint", "", "where /healthz is served")
	endpoint := flags.String("kubelet-registration-path", "", "the driver's socket, as kubelet sees it")
	directory := flags.String("plugin-registration-path", "/registration", "kubelet's directory of plugins")
	timeout := flags.Duration("probe-timeout", time.Second, "how long the driver has to answer")
	_ = flags.Parse(os.Args[2:])

	// The driver may start later than its sidecars: calls wait for it.
	driver, err := grpc.NewClient("unix://"+*address, grpc.WithAuthority("localhost"),
		grpc.WithDefaultCallOptions(grpc.WaitForReady(true)),
		grpc.WithTransportCredentials(insecure.NewCredentials()))
	check(err)
	identity := csi.NewIdentityClient(driver)

	switch os.Args[1] {
	case "registrar":
		go serveHealth(*health, func(context.Context) error { return nil })
		check(register(identity, *endpoint, *directory))
	case "livenessprobe":
		serveHealth(*health, func(ctx context.Context) error { return probe(ctx, identity, *timeout) })
	default:
		log.Fatalf("sidecars: %s is neither registrar nor livenessprobe", os.Args[1])
	}
}

func check(err error) {
	if err != nil {
		log.Fatal(err)
	}
}

func serveHealth(address string, healthy func(context.Context) error) {
	http.HandleFunc("/healthz", func(answer http.ResponseWriter, request *http.Request) {
		if err := healthy(request.Context()); err != nil {
			log.Printf("not healthy: %v", err)
			http.Error(answer, err.Error(), http.StatusInternalServerError)
			return
		}
		fmt.Fprintln(answer, "ok")
	})
	check(http.ListenAndServe(address, nil))
}

func probe(ctx context.Context, identity csi.IdentityClient, timeout time.Duration) error {
	ctx, cancel := context.WithTimeout(ctx, timeout)
	defer cancel()
	answer, err := identity.Probe(ctx, &csi.ProbeRequest{})
	if err != nil {
		return err
	}
	if ready := answer.GetReady(); ready != nil && !ready.GetValue() {
		return fmt.Errorf("the driver is not ready")
	}
	return nil
}

// register offers the driver to kubelet until SIGTERM, which takes it away.
func register(identity csi.IdentityClient, endpoint, directory string) error {
	info, err := identity.GetPluginInfo(context.Background(), &csi.GetPluginInfoRequest{})
	if err != nil {
		return err
	}
	socket := filepath.Join(directory, info.GetName()+"-reg.sock")
	if err := os.Remove(socket); err != nil && !os.IsNotExist(err) {
		return err
	}
	listener, err := net.Listen("unix", socket)
	if err != nil {
		return err
	}
	server := grpc.NewServer()
	registration.RegisterRegistrationServer(server, &offer{name: info.GetName(), endpoint: endpoint})
	signals := make(chan os.Signal, 1)
	signal.Notify(signals, os.Interrupt, syscall.SIGTERM)
	go func() {
		<-signals
		server.Stop() // removes the socket
	}()
	log.Printf("offering %s at %s", info.GetName(), socket)
	return server.Serve(listener)
}

type offer struct {
	registration.UnimplementedRegistrationServer
	name, endpoint string
}

func (o *offer) GetInfo(context.Context, *registration.InfoRequest) (*registration.PluginInfo, error) {
	return &registration.PluginInfo{
		Type: registration.CSIPlugin, Name: o.name, Endpoint: o.endpoint, SupportedVersions: []string{"1.0.0"},
	}, nil
}

func (o *offer) NotifyRegistrationStatus(_ context.Context, status *registration.RegistrationStatus) (*registration.RegistrationStatusResponse, error) {
	if !status.GetPluginRegistered() {
		log.Fatalf("kubelet refused the driver: %s", status.GetError())
	}
	log.Print("registered")
	return &registration.RegistrationStatusResponse{}, nil
}
